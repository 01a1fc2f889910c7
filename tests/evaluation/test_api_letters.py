"""Evaluations of a model behind an OpenAI-compatible server, beside those of its weights."""

import json

import numpy as np
import pytest
from evaluating import metrics, small_evaluation
from judge_server import send
from openai_server import OpenAIServer
from tiny import NO_SYSTEM_TEMPLATE, add_bos, save_tiny

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.evaluation.evaluate import EvaluationOptions, evaluate
from calibtune.models import served
from calibtune.results.samples import find_samples, read_samples

pytest.importorskip("openai", reason="needs the openai package")
SECRET = "sk-test-0123456789abcdef"


@pytest.fixture
def whole(monkeypatch):
    """Ask for all of a tiny model's tokens, so that every letter is shown."""
    monkeypatch.setattr(served, "TOPS", (500, 20, 5))


@pytest.fixture(scope="module")
def server(model):
    with OpenAIServer(model, most=500) as found:
        yield found


def asked(server, output, **options):
    return evaluate(EvaluationOptions(("mc_calib_arc",), output, "tiny", backend="api", base_url=server.url, **options))


def samples(folder):
    return read_samples(*find_samples(folder))


@pytest.mark.parametrize("options", [{}, {"apply_chat_template": True}, {"num_fewshot": 2}], ids=str)
def test_letters_of_a_server_equal_those_of_the_weights(server, model, mirror, tmp_path, whole, options):
    expected = small_evaluation(tmp_path / "hf", model=str(model), **options)
    before = len(server.bodies)
    found = asked(server, tmp_path / "api", **options)
    np.testing.assert_allclose(samples(tmp_path / "api").log_probs, samples(tmp_path / "hf").log_probs, atol=1e-4)
    assert not samples(tmp_path / "api").unseen.any()
    assert metrics(found) == pytest.approx(metrics(expected), abs=1e-3)
    bodies = [body for body in server.bodies[before:] if "right one" in json.dumps(body)]
    assert len(bodies) == 24  # one request a question
    assert {body["max_tokens"] for body in bodies} == {1}


def test_a_server_is_asked_once_a_question_and_order(server, model, mirror, tmp_path, whole):
    small_evaluation(tmp_path / "hf", model=str(model), orders=2)
    before = len(server.bodies)
    asked(server, tmp_path / "api", orders=2)
    np.testing.assert_allclose(samples(tmp_path / "api").log_probs, samples(tmp_path / "hf").log_probs, atol=1e-4)
    assert len([body for body in server.bodies[before:] if "right one" in json.dumps(body)]) == 2 * 24


def test_a_template_without_a_place_for_system_messages_gets_the_weights_prompt(mirror, tmp_path, whole):
    folder = save_tiny(tmp_path / "gemma", chat_template=NO_SYSTEM_TEMPLATE)
    small_evaluation(tmp_path / "hf", model=str(folder), apply_chat_template=True)
    with OpenAIServer(folder, most=500) as server:
        asked(server, tmp_path / "api", apply_chat_template=True)
    np.testing.assert_allclose(samples(tmp_path / "api").log_probs, samples(tmp_path / "hf").log_probs, atol=1e-4)


def test_a_server_that_adds_the_beginning_of_text_gives_what_a_tokenizer_that_adds_it_gives(mirror, tmp_path, whole):
    folder = save_tiny(tmp_path / "plain")
    with OpenAIServer(folder, most=500) as server:
        server.bos = add_bos(folder)
        asked(server, tmp_path / "api")
    small_evaluation(tmp_path / "hf", model=str(folder))
    np.testing.assert_allclose(samples(tmp_path / "api").log_probs, samples(tmp_path / "hf").log_probs, atol=1e-4)


def test_tokens_shown_without_their_blank_are_found(model, mirror, tmp_path, whole):
    with OpenAIServer(model, strip=True, most=300) as server:
        asked(server, tmp_path / "api")
    assert not samples(tmp_path / "api").unseen.all()


@pytest.mark.parametrize(("most", "chat"), [(20, True), (100, False)])
def test_letters_beyond_the_top_tokens_are_bounded_and_ranges_hold_the_weights_numbers(
    server, model, mirror, tmp_path, most, chat, caplog, monkeypatch
):
    monkeypatch.setattr(served, "TOPS", (most,))
    expected = metrics(small_evaluation(tmp_path / "hf", model=str(model), apply_chat_template=chat))
    found = metrics(asked(server, tmp_path / "api", apply_chat_template=chat))
    true, rows = samples(tmp_path / "hf").log_probs, samples(tmp_path / "api")
    assert rows.unseen.any()
    np.testing.assert_allclose(rows.log_probs[~rows.unseen], true[~rows.unseen], atol=1e-4)
    assert (true[rows.unseen] <= rows.log_probs[rows.unseen] + 1e-6).all()
    for name in ("acc", "nll", "brier", "letter_mass", "conf_ece_10", "conf_ece_14", "cw_ece_10", "cw_ece_14"):
        assert found[f"{name}_least"] - 1e-6 <= expected[name] <= found[f"{name}_most"] + 1e-6, name
    assert "a letter lies beyond the server's top tokens" in caplog.text


def test_rescore_shows_the_ranges(server, mirror, tmp_path, capsys):
    asked(server, tmp_path / "api")
    assert main(["rescore", str(tmp_path / "api"), "--bins", "15"]) == 0
    printed = capsys.readouterr()
    assert "by unseen letters" in printed.out
    assert "which leaves open acc" in printed.err
    assert main(["rescore", str(tmp_path / "api"), "--json", "--bins", "15"]) == 0
    (numbers,) = json.loads(capsys.readouterr().out).values()
    assert numbers["nll_most"] is None
    assert numbers["conf_ece_15_least"] <= numbers["conf_ece_15"] <= numbers["conf_ece_15_most"]
    assert main(["report", str(tmp_path / "api"), "--output", str(tmp_path / "report")]) == 0


def test_a_killed_evaluation_pays_for_no_reply_twice(model, mirror, tmp_path):
    down = True

    def behave(handler, attempt, body):
        if down and len(server.answered) >= 12:
            send(handler, 401, "{}")
            return True

    with OpenAIServer(model, behave=behave) as server:
        with pytest.raises(UserError, match="answers 401 to model 'tiny'"):
            asked(server, tmp_path / "api", batch_size="2")
        down = False
        asked(server, tmp_path / "api", batch_size="2")
    assert set(server.answered.values()) == {1}


def test_requests_that_fail_are_tried_again_after_the_time_that_the_server_asks_for(model, mirror, tmp_path, whole):
    def behave(handler, attempt, body):
        if attempt == 1 and "(test" in json.dumps(body):
            send(handler, 429, "{}", [("retry-after", "0.3")])
            return True

    with OpenAIServer(model, most=500, behave=behave) as server:
        asked(server, tmp_path / "api", limit=3)
    waits = [times[1] - times[0] for times in server.times.values() if len(times) > 1]
    assert len(waits) == 3
    assert min(waits) >= 0.3


def test_the_key_is_sent_and_nowhere_written(model, mirror, tmp_path, whole, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)

    def behave(handler, attempt, body):
        send(handler, 400, json.dumps({"error": {"message": f"no logprobs for {SECRET}"}}))
        return True

    with OpenAIServer(model, most=500) as server:
        command = ["eval", "--backend", "api", "--base-url", server.url, "--model", "tiny", "--tasks", "mc_calib_arc"]
        assert main([*command, "--limit", "2", "--output", str(tmp_path / "api")]) == 0
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
        server.misbehave = behave
        assert main([*command, "--limit", "2", "--output", str(tmp_path / "other")]) == 2
    printed = capsys.readouterr()
    assert "refuses completions of tiny with log-probabilities" in printed.err
    assert SECRET not in printed.out + printed.err
    assert not any(SECRET in path.read_text() for path in tmp_path.rglob("*") if path.is_file() and "api" in str(path))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp32"}, "--precision is for a model that is loaded here"),
        ({"device": "cpu"}, "--device is for a model that is loaded here"),
        ({"batch_size": "auto"}, "takes the number of requests at a time"),
        ({"base_url": "localhost:8000"}, "is not an http"),
        ({"backend": "hf"}, "--base-url is for --backend api"),
    ],
)
def test_what_a_server_cannot_be_told_is_refused(mirror, tmp_path, options, said):
    given = {"model": "tiny", "backend": "api", "base_url": "http://127.0.0.1:9/v1", **options}
    with pytest.raises(UserError, match=said):
        evaluate(EvaluationOptions(("mc_calib_arc",), tmp_path / "out", **given))


def test_a_server_without_log_probabilities_is_refused_before_any_question(model, mirror, tmp_path):
    with OpenAIServer(model, logprobs=False) as server, pytest.raises(UserError, match="gives no log-probabilities"):
        asked(server, tmp_path / "api")
    assert len(server.bodies) <= 2


def test_a_server_that_shows_no_letter_is_refused_with_what_it_shows(model, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "TOPS", (1,))
    with OpenAIServer(model) as server, pytest.raises(UserError, match=r"shows no letter among the 1 most likely"):
        asked(server, tmp_path / "api", limit=1)


def test_a_temperature_is_fitted_to_a_server_and_evaluated_there(server, mirror, tmp_path, whole, capsys):
    base = ["--backend", "api", "--base-url", server.url, "--model", "tiny", "--tasks", "mc_calib_arc"]
    fit = ["fit", "--method", "temperature", *base, "--output", str(tmp_path / "t")]
    assert main(fit) == 0
    fitted = json.loads((tmp_path / "t" / "temperature.json").read_text())
    assert main(["eval", "--artifact", str(tmp_path / "t"), *base, "--output", str(tmp_path / "scaled")]) == 0
    assert samples(tmp_path / "scaled").temperatures["scaled"] == pytest.approx(fitted["temperature"])
    assert "--backend api" in capsys.readouterr().out
    before = len(server.bodies)
    assert main([*fit, "--resume"]) == 0
    assert len(server.bodies) == before


def test_a_temperature_of_a_server_is_that_of_its_weights(server, model, mirror, tmp_path, whole):
    command = ["fit", "--method", "temperature", "--tasks", "mc_calib_arc"]
    here = ["--model", str(model), "--device", "cpu", "--precision", "fp32", "--output", str(tmp_path / "hf")]
    there = ["--model", "tiny", "--backend", "api", "--base-url", server.url, "--output", str(tmp_path / "api")]
    assert main([*command, *here]) == main([*command, *there]) == 0
    found, expected = (json.loads((tmp_path / name / "temperature.json").read_text()) for name in ("api", "hf"))
    assert found["temperature"] == pytest.approx(expected["temperature"], rel=1e-3)
    assert found["questions"] == expected["questions"]


def test_a_temperature_is_refused_where_unseen_letters_decide_it(server, mirror, tmp_path, capsys):
    base = ["--method", "temperature", "--output", str(tmp_path / "t")]
    there = ["--backend", "api", "--base-url", server.url, "--model", "tiny", "--tasks", "mc_calib_arc"]
    assert main(["fit", *base, *there]) == 2
    assert "more than its 95 % interval" in capsys.readouterr().err
    asked(server, tmp_path / "api")
    (path,) = find_samples(tmp_path / "api")
    assert main(["fit", "--method", "temperature", "--samples", str(path), "--output", str(tmp_path / "s")]) == 2
    assert "ask a server that shows more tokens" in capsys.readouterr().err
