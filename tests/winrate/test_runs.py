"""`calibtune winrate alpaca-eval` from models to a rate, with a judge on loopback."""

import json
import signal
import subprocess
import time

import pytest
from commands import offline
from judge_server import JudgeServer, completion, prefers, send
from quick_python import quick_python
from tiny import save_tiny

from calibtune.__main__ import main

SECRET = "sk-test-0123456789abcdef"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """Make a LoRA adapter that changes the model's answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("models") / "tuned"
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def save(path, rows):
    path.write_text(json.dumps(rows))
    return path


def instructions(folder, count=6):
    return save(folder / "instructions.json", [{"instruction": f"Question {i}?\n\nOptions:"} for i in range(count)])


def reference(folder, count=6):
    rows = [
        {"instruction": f"Question {i}?\n\nOptions:", "output": f"answer {i}", "generator": "gpt"} for i in range(count)
    ]
    return save(folder / "reference.json", rows)


def command(server, folder, model, *more, count=6):
    return [
        *("winrate", "alpaca-eval", "--model", str(model), "--instructions", str(instructions(folder, count))),
        *("--judge", "some-judge", "--judge-base-url", server.url, "--judge-retries", "1", "--device", "cpu"),
        *("--max-new-tokens", "8", "--batch-size", "2", "--output", str(folder / "out"), *map(str, more)),
    ]


def always(probability):
    return lambda handler, attempt, body: completion(prefers(probability), content="m")


def result(folder):
    return json.loads((folder / "out" / "winrate_alpaca_eval.json").read_text())


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def base_run(model, tmp_path_factory):
    """Judge the base once: the server that did, the words of the command, and the folder."""
    folder = tmp_path_factory.mktemp("base")
    with JudgeServer(always(0.8)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        line = command(server, folder, model, "--reference", reference(folder))
        assert main(line) == 0
        yield server, line, folder


def test_tuned_models_answers_are_those_of_generate_and_judged_against_reference_outputs(
    tmp_path, model, adapter, key, capfd
):
    with JudgeServer(always(0.75)) as server:
        more = ("--artifact", adapter, "--reference", reference(tmp_path))
        assert main(command(server, tmp_path, model, *more)) == 0
    found = result(tmp_path)
    assert (found["model"], found["baseline"], found["n"]) == ("base+tuned", "gpt", 6)
    assert (found["judge"], found["unjudged"]) == ("some-judge (weighted_alpaca_eval_gpt4_turbo)", 0)
    # One order, at random: each pair gives 0.75 or 0.25.
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text(), parse_constant=pytest.fail)
    assert {round(row["preference"], 6) for row in rows} <= {1.25, 1.75}
    outputs = json.loads((tmp_path / "out" / "model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == [f"Question {i}?\n\nOptions:" for i in range(6)]
    assert all(row["output"] and row["generator"] == "base+tuned" for row in outputs)
    out, _ = capfd.readouterr()
    assert "|alpaca_eval|" in out
    assert [row["output"] for row in outputs] == greedy_answers(model, adapter, outputs)


def greedy_answers(model, adapter, rows):
    """Return transformers' own answers of at most eight tokens."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    answers = []
    for row in rows:
        chat = [{"role": "user", "content": row["instruction"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            answer = tuned.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(answer, skip_special_tokens=True))
    return answers


def test_written_annotations_can_be_read_back(tmp_path, base_run):
    _, _, folder = base_run
    recorded = ["winrate", "alpaca-eval", "--annotations", str(folder / "out" / "annotations.json")]
    assert main([*recorded, "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "winrate_alpaca_eval.json").read_text())
    assert {k: again[k] for k in ("win_rate", "low", "high", "n")} == {
        k: result(folder)[k] for k in ("win_rate", "low", "high", "n")
    }


def test_both_orders_cancel_position_bias_against_the_base(tmp_path, model, adapter, key):
    with JudgeServer(always(0.9)) as server:
        more = ("--artifact", adapter, "--reference", model, "--both-orders")
        assert main(command(server, tmp_path, model, *more)) == 0
    found = result(tmp_path)
    assert (found["model"], found["baseline"]) == ("base+tuned", "base")
    assert found["win_rate"] == pytest.approx(0.5)
    assert found["first_shown"] == pytest.approx(0.9)
    assert "the answer shown first gets 90.0 %" in found["note"]
    mine, theirs = (json.loads((tmp_path / "out" / f"{n}_outputs.json").read_text()) for n in ("model", "reference"))
    assert [row["output"] for row in mine] != [row["output"] for row in theirs]


def test_model_without_chat_template_is_noted(tmp_path, key):
    bare = save_tiny(tmp_path / "bare", chat_template=None)
    with JudgeServer(always(0.8)) as server:
        assert main(command(server, tmp_path, bare, "--reference", reference(tmp_path))) == 0
    assert "no chat template" in result(tmp_path)["note"]


def test_second_run_sends_no_requests(base_run, key):
    server, line, folder = base_run
    first = result(folder)
    assert main(line) == 0
    assert result(folder) == first
    assert set(server.seen.values()) == {1}


@pytest.mark.slow
def test_killed_run_resumes_without_repeating_requests(tmp_path, model):
    """Kill the process while a slow judge answers, and count the requests at the server."""
    workers, count = 2, 14
    environment = {**offline(tmp_path / "cache"), "OPENAI_API_KEY": SECRET}
    with JudgeServer(always(0.8), delay=0.3) as server:
        line = command(server, tmp_path, model, "--reference", reference(tmp_path, count), count=count)
        line = [quick_python(), "-m", "calibtune", *line, "--judge-workers", str(workers)]
        journal = tmp_path / "out" / "judgments.jsonl"
        first = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 4):
            assert first.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until, "no judgment arrived"
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        time.sleep(0.5)
        kept = journal.read_bytes().count(b"\n")
        paid = dict(server.seen)
        assert 4 <= kept < count
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert len(server.seen) == count
    again = [prompt for prompt, times in server.seen.items() if times > 1]
    # Only requests in flight at the kill may be repeated.
    assert len(again) <= workers
    assert sum(server.seen.values()) - sum(paid.values()) == count - kept
    assert result(tmp_path)["n"] == count
    keys = [json.loads(entry)["key"] for entry in journal.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == count
    assert SECRET.encode() not in all_bytes(tmp_path)


def test_key_is_sent_but_not_written_or_logged(tmp_path, model, key, capfd, caplog):
    """Check it even where the server repeats the key in its replies and errors."""

    def behave(handler, attempt, body):
        if "Question 1?" in json.dumps(body) and attempt == 1:
            return send(handler, 500, json.dumps({"error": {"message": f"bad key {SECRET}"}}))
        if "Question 2?" in json.dumps(body):
            return send(handler, 400, json.dumps({"error": {"message": f"rejected {SECRET}"}}))
        if "Question 3?" in json.dumps(body):
            return completion(None, refusal=f"I will not, {SECRET}")
        return completion(prefers(0.8), content=f"m {SECRET}")

    caplog.set_level("DEBUG")
    with JudgeServer(behave) as server:
        assert main(command(server, tmp_path, model, "--reference", reference(tmp_path))) == 0
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    out, err = capfd.readouterr()
    assert SECRET.encode() not in all_bytes(tmp_path)
    assert SECRET not in out + err
    assert not [record for record in caplog.records if SECRET in record.getMessage()]
    found = result(tmp_path)
    assert (found["n"], found["unjudged"]) == (4, 2)
    assert "2 of 6 pairs have no verdict" in found["note"]


def test_a_key_with_signs_that_json_escapes_is_neither_written_nor_half_printed(tmp_path, model, monkeypatch, capfd):
    secret = 'sk-"quoted"\\and/slashed-0123456'
    monkeypatch.setenv("OPENAI_API_KEY", secret)

    def behave(handler, attempt, body):
        if "Question 1?" in json.dumps(body):
            # Cut at 100 characters, most of the key would be left.
            return send(handler, 200, f"{'x' * 75}{secret}")
        return completion(prefers(0.8), content=f"m {secret} {json.dumps(secret)}")

    with JudgeServer(behave) as server:
        assert main(command(server, tmp_path, model, "--reference", reference(tmp_path))) == 1
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {secret}"}
    out, err = capfd.readouterr()
    assert "1 of 6 pairs are still unjudged" in err
    assert "[key]" in err
    written = out + err + all_bytes(tmp_path).decode(errors="replace")
    for part in ("quoted", "slashed"):
        assert part not in written
    assert "m [key]" in (tmp_path / "out" / "judgments.jsonl").read_text()


def test_compare_gives_the_paired_difference_to_the_base(tmp_path, base_run, model, adapter, key):
    server, _, folder = base_run
    more = ("--artifact", adapter, "--reference", folder / "reference.json")
    assert main(command(server, tmp_path, model, *more, "--compare", folder / "out" / "annotations.json")) == 0
    found = result(tmp_path)
    assert (found["compared_with"], found["shared"]) == ("base", 6)
    assert found["difference_low"] <= found["difference"] <= found["difference_high"]
    assert found["difference"] == pytest.approx(found["win_rate"] - result(folder)["win_rate"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--reference", "nowhere.json"), "--reference nowhere.json does not exist"),
        (("--artifact", ".", "--reference", "REF"), "no adapter_config.json"),
        (("--reference", "REF", "--max-new-tokens", "600"), "leaves no room"),
        (("--reference", "REF", "--batch-size", "0"), "--batch-size 0"),
        (("--reference", "REF", "--model-args", "pretrained=x"), "--model-args"),
        (("--reference", "REF", "--judge-workers", "0"), "--judge-workers 0"),
        (("--reference", "REF", "--judge-retries", "-1"), "--judge-retries -1"),
        (("--reference", "REF", "--judge-timeout", "nan"), "--judge-timeout nan"),
        (("--reference", "REF", "--limit", "0"), "--limit 0"),
        (("--reference", "REF", "--max-new-tokens", "0"), "--max-new-tokens 0"),
        (("--reference", "REF", "--judge-base-url", "http://u:p@h/v1"), "environment"),
        ((), "needs --reference"),
        (("--annotations", "a.json"), "leave out --model"),
    ],
)
def test_bad_options_are_refused_before_any_request(tmp_path, model, key, capsys, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    more = [str(reference(tmp_path)) if word == "REF" else word for word in more]
    with JudgeServer() as server:
        assert main(command(server, tmp_path, model, *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not server.seen


def test_reference_without_all_instructions_is_refused(tmp_path, model, key, capsys):
    with JudgeServer() as server:
        assert main(command(server, tmp_path, model, "--reference", reference(tmp_path, 5))) == 2
    assert "lacks 1 of 6 instructions" in capsys.readouterr().err


def test_missing_model_is_refused(tmp_path, key, capsys):
    with JudgeServer() as server:
        assert main(command(server, tmp_path, tmp_path / "nowhere", "--reference", reference(tmp_path))) == 2
    assert "nowhere cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["sk-\u2026", "sk-1\n2"])
def test_invalid_key_is_refused_and_not_quoted(tmp_path, model, monkeypatch, capsys, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with JudgeServer() as server:
        assert main(command(server, tmp_path, model, "--reference", reference(tmp_path))) == 2
    error = capsys.readouterr().err
    assert "OPENAI_API_KEY is not a key" in error
    assert bad not in error


def test_openai_endpoint_needs_a_key(tmp_path, model, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with JudgeServer() as server:
        line = command(server, tmp_path, model, "--reference", reference(tmp_path))
        at = line.index("--judge-base-url")
        assert main(line[:at] + line[at + 2 :]) == 2
    assert "no OPENAI_API_KEY" in capsys.readouterr().err
