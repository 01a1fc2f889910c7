import json
import time

import pytest
from judge_server import JudgeServer, completion, cut, first_is_longer, prefers, send

from calibtune.endpoints.endpoint import Endpoint
from calibtune.endpoints.journal import Journal, key_of
from calibtune.errors import UserError, WorkFailed
from calibtune.winrate import pairs
from calibtune.winrate.alpaca import package
from calibtune.winrate.judge import Judge

SECRET = "sk-test-0123456789abcdef"


def outputs(count, length, generator):
    return [
        {"instruction": f"Question {i}?", "output": "x" * (length + i % 3), "generator": generator}
        for i in range(count)
    ]


def ask(server, folder, count=6, both_orders=False, name="some-judge", retries=3, timeout=5.0, workers=4):
    endpoint = Endpoint(server.url, SECRET, timeout=timeout, retries=retries, workers=workers)
    with Journal(folder / "judgments.jsonl") as journal:
        judge = Judge(endpoint, journal)
        rows = pairs.annotate(outputs(count, 60, "tuned"), outputs(count, 30, "base"), name, judge, both_orders)
    return rows, judge


def first_attempt(act):
    """Misbehave at each prompt's first attempt only."""
    return lambda handler, attempt, body: act(handler) if attempt == 1 else JudgeServer.verdict(body)


def test_log_probabilities_become_preferences_in_either_order(tmp_path):
    with JudgeServer() as server:
        rows, _ = ask(server, tmp_path, count=12)
    # The longer answer is the tuned model's: it gets 0.8, shown first or second.
    assert [row["preference"] for row in rows] == pytest.approx([1.8] * 12)
    assert [row["instruction"] for row in rows] == [f"Question {i}?" for i in range(12)]
    assert {(row["generator_1"], row["generator_2"]) for row in rows} == {("base", "tuned")}
    assert {first_is_longer(body) for body in server.bodies} == {True, False}
    assert {body["model"] for body in server.bodies} == {"some-judge"}
    assert all(body["logprobs"] and body["top_logprobs"] == 5 and body["max_tokens"] == 1 for body in server.bodies)


def test_both_orders_cancel_and_measure_position_bias(tmp_path):
    with JudgeServer(lambda handler, attempt, body: completion(prefers(0.9), content="m")) as server:
        rows, _ = ask(server, tmp_path, both_orders=True)
    assert len(server.seen) == 12
    assert [row["preference"] for row in rows] == pytest.approx([1.5] * 6)
    assert pairs.position_bias(rows) == pytest.approx(0.9)


def test_both_orders_keep_an_unbiased_judges_preference(tmp_path):
    with JudgeServer() as server:
        rows, _ = ask(server, tmp_path, both_orders=True)
    assert [row["preference"] for row in rows] == pytest.approx([1.8] * 6)
    assert [row["preference_model_first"] for row in rows] == pytest.approx([1.8] * 6)
    assert pairs.position_bias(rows) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "act",
    [
        lambda handler: send(handler, 500, '{"error": {"message": "broken"}}'),
        lambda handler: send(handler, 429, '{"error": {"message": "rate limit"}}', [("retry-after", "0.2")]),
        cut,
        lambda handler: send(handler, 200, '{"choices": [{"mess'),
        lambda handler: send(handler, 200, '{"choices": []}'),
        lambda handler: send(handler, 200, '{"choices": [null]}'),
        lambda handler: send(handler, 200, "[]"),
        lambda handler: time.sleep(2.5),
    ],
    ids=["500", "429", "cut", "half JSON", "no choice", "null choice", "no object", "slow"],
)
def test_transient_fault_is_retried_once(tmp_path, act):
    with JudgeServer(first_attempt(act)) as server:
        rows, _ = ask(server, tmp_path, timeout=1.0 if act.__name__ == "<lambda>" else 5.0, workers=6)
    assert [row["preference"] for row in rows] == pytest.approx([1.8] * 6)
    assert set(server.seen.values()) == {2}
    assert set(server.answered.values()) == {1}
    lines = (tmp_path / "judgments.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == 6


def test_retry_after_is_respected(tmp_path):
    act = first_attempt(lambda handler: send(handler, 429, "{}", [("retry-after", "1.5")]))
    with JudgeServer(act) as server:
        ask(server, tmp_path, count=2)
    for first, second in server.times.values():
        assert second - first >= 1.5


@pytest.mark.parametrize("act", [lambda handler: send(handler, 500, "{}"), lambda handler: send(handler, 200, "{")])
def test_retries_are_limited_and_the_error_says_how_to_resume(tmp_path, act):
    with (
        JudgeServer(lambda handler, attempt, body: act(handler)) as server,
        pytest.raises(WorkFailed, match=r"2 of 2 pairs are still unjudged .* run the same command again"),
    ):
        ask(server, tmp_path, count=2, retries=1)
    assert max(server.seen.values()) <= 3


def test_failed_pairs_are_retried_in_the_next_run(tmp_path):
    broken = True

    def behave(handler, attempt, body):
        if broken and "Question 4?" in json.dumps(body):
            return send(handler, 500, "{}")
        return JudgeServer.verdict(body)

    with JudgeServer(behave) as server:
        with pytest.raises(WorkFailed, match="1 of 6 pairs"):
            ask(server, tmp_path, retries=0)
        broken = False
        rows, _ = ask(server, tmp_path, retries=0)
    assert [row["preference"] for row in rows] == pytest.approx([1.8] * 6)
    assert set(server.answered.values()) == {1}


def test_dead_endpoint_is_abandoned_early(tmp_path):
    with (
        JudgeServer(lambda handler, attempt, body: send(handler, 500, "{}")) as server,
        pytest.raises(WorkFailed, match="60 of 60"),
    ):
        ask(server, tmp_path, count=60, retries=0)
    assert len(server.seen) < 30


def test_refusal_is_recorded_and_not_retried(tmp_path):
    def behave(handler, attempt, body):
        if "Question 1?" in json.dumps(body):
            return completion(None, refusal="I cannot compare these.")
        return JudgeServer.verdict(body)

    with JudgeServer(behave) as server:
        for _ in range(2):
            rows, _ = ask(server, tmp_path)
            assert [row["preference"] is None for row in rows] == [False, True, False, False, False, False]
    assert set(server.seen.values()) == {1}
    assert "I cannot compare these." in (tmp_path / "judgments.jsonl").read_text()


def test_unknown_verdict_token_gives_no_preference(tmp_path):
    def behave(handler, attempt, body):
        if "Question 0?" in json.dumps(body):
            return completion([{"token": "Both", "logprob": -0.1, "bytes": None}], content="Both")
        return JudgeServer.verdict(body)

    with JudgeServer(behave) as server:
        rows, _ = ask(server, tmp_path)
    assert rows[0]["preference"] is None
    assert rows[1]["preference"] == pytest.approx(1.8)


def test_endpoint_without_log_probabilities_is_an_error(tmp_path):
    with (
        JudgeServer(lambda handler, attempt, body: completion(None, content="m")) as server,
        pytest.raises(WorkFailed, match=r"none of the 6 replies .*'m'"),
    ):
        ask(server, tmp_path)


def test_rejected_requests_are_recorded_without_the_key(tmp_path):
    def behave(handler, attempt, body):
        if "Question 2?" in json.dumps(body):
            return send(handler, 400, json.dumps({"error": {"message": f"too long, {SECRET}"}}))
        return JudgeServer.verdict(body)

    with JudgeServer(behave) as server:
        rows, judge = ask(server, tmp_path)
    assert rows[2]["preference"] is None
    (said,) = judge.rejections
    assert "too long" in said
    assert SECRET not in said


def test_endpoint_that_rejects_everything_is_an_error(tmp_path):
    reply = json.dumps({"error": {"message": "logprobs are not supported"}})
    act = JudgeServer(lambda handler, attempt, body: send(handler, 400, reply))
    with act as server, pytest.raises(WorkFailed, match="logprobs are not supported"):
        ask(server, tmp_path)
    assert set(server.seen.values()) == {1}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_key_stops_early_and_is_not_quoted(tmp_path, status):
    reply = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}"}})
    with (
        JudgeServer(lambda handler, attempt, body: send(handler, status, reply)) as server,
        pytest.raises(UserError, match=f"answers {status}") as caught,
    ):
        ask(server, tmp_path, count=40, workers=2)
    assert SECRET not in str(caught.value)
    assert len(server.bodies) < 10


def test_identical_answers_tie_without_a_request(tmp_path):
    same = outputs(3, 30, "base")
    with JudgeServer() as server, Journal(tmp_path / "j.jsonl") as journal:
        rows = pairs.annotate(
            [{**row, "generator": "tuned"} for row in same], same, "j", Judge(Endpoint(server.url, SECRET), journal)
        )
    assert [row["preference"] for row in rows] == [1.5, 1.5, 1.5]
    assert not server.bodies


@pytest.mark.parametrize("count", [1, 4])
def test_only_differing_answers_are_judged(tmp_path, count):
    mine, theirs = outputs(count, 60, "tuned"), outputs(count, 30, "base")
    mine[0] = {**theirs[0], "generator": "tuned"}
    with JudgeServer() as server, Journal(tmp_path / "j.jsonl") as journal:
        rows = pairs.annotate(mine, theirs, "j", Judge(Endpoint(server.url, SECRET), journal))
    assert [row["preference"] for row in rows] == pytest.approx([1.5, *[1.8] * (count - 1)])
    assert len(server.bodies) == count - 1


def test_instructions_missing_from_the_reference_are_refused(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        judge = Judge(Endpoint("http://127.0.0.1:9/v1", SECRET), journal)
        with pytest.raises(UserError, match="differ in 1 instructions"):
            pairs.annotate(outputs(3, 60, "tuned"), outputs(2, 30, "base"), "j", judge)


def test_alpaca_eval_judge_uses_its_configured_model(tmp_path):
    with JudgeServer() as server:
        rows, _ = ask(server, tmp_path, count=2, name="weighted_alpaca_eval_gpt4_turbo")
    assert {body["model"] for body in server.bodies} == {"gpt-4-1106-preview"}
    assert rows[0]["annotator"] == "weighted_alpaca_eval_gpt4_turbo"


def test_requests_and_preferences_equal_alpaca_evals_client(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    name = "weighted_alpaca_eval_gpt4_turbo"
    with JudgeServer() as server:
        rows, _ = ask(server, tmp_path, name=name)
        mine = server.bodies[:]
        server.bodies.clear()
        config = tmp_path / "clients.yaml"
        config.write_text(f"default:\n- base_url: {server.url}\n")
        with package() as alpaca_eval:
            annotator = alpaca_eval.annotators.PairwiseAnnotator(annotators_config=name, caching_path=None)
            for single in annotator.annotators.values():
                single.completions_kwargs = {**single.completions_kwargs, "client_config_path": str(config)}
            theirs = annotator.annotate_head2head(outputs_1=outputs(6, 30, "base"), outputs_2=outputs(6, 60, "tuned"))
    assert sorted(map(key_of, mine)) == sorted(map(key_of, server.bodies))
    assert {r["instruction"]: r["preference"] for r in rows} == {r["instruction"]: r["preference"] for r in theirs}


def test_judge_without_a_chat_endpoint_is_refused(tmp_path):
    with JudgeServer() as server, pytest.raises(UserError, match="anthropic_completions"):
        ask(server, tmp_path, name="claude")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000/v1", "not an http"),
        ("http://me:pw@host/v1", "put the key in the environment"),
        ("http://host/v1?key=x", "put the key in the environment"),
        (None, "NO_SUCH_KEY"),
    ],
)
def test_invalid_url_or_url_with_a_secret_is_refused(url, said):
    with pytest.raises(UserError, match=said):
        Endpoint.from_environment(url, "NO_SUCH_KEY")


def test_repr_does_not_show_the_key():
    assert SECRET not in repr(Endpoint("http://h/v1", SECRET))


@pytest.mark.parametrize("elsewhere", ["http://localhost:{port}/v1/chat/completions", "/elsewhere"])
def test_redirects_are_not_followed(tmp_path, elsewhere):
    with JudgeServer() as other:
        to = elsewhere.format(port=other.http.server_port)
        act = JudgeServer(lambda handler, attempt, body: send(handler, 307, "", [("location", to)]))
        with (
            act as server,
            pytest.raises(UserError, match=r"sends requests on to .*\(HTTP 307\), which is not followed"),
        ):
            ask(server, tmp_path, count=12, workers=1)
    assert other.bodies == []
    assert len(server.bodies) < 12
