import json
import math

import numpy as np
import pytest
from harness import FakeLM, enter_mirror, evaluate
from tiny import save_tiny

from harness_ext.errors import UserError
from harness_ext.intervals import wilson

PAIRS = [
    ("Which of these?", "option A", "option B Answer: option C"),
    ("Which one?", "the same", "the same"),
    ("Options:", "a rather long answer, with only a single letter", "Z"),
    ("Right?", "the letter of the correct option", "nothing else."),
]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "argilla" / "ultrafeedback-binarized-preferences"
    folder.mkdir(parents=True)
    write(folder, PAIRS)
    enter_mirror(tmp_path / "hub", monkeypatch)
    return folder


def write(folder, pairs):
    names = ("instruction", "chosen_response", "rejected_response")
    (folder / "train.jsonl").write_text("".join(json.dumps(dict(zip(names, p, strict=True))) + "\n" for p in pairs))


def token_log_probs(folder, chat):
    """Compute the log-probabilities of each response's tokens with transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for instruction, *texts in PAIRS:
        prompt = f"<|user|>\n{instruction}<|end|>\n<|assistant|>\n" if chat else instruction + "\n\n"
        # A template's last newline belongs to the prompt; the blank line without one is the task's delimiter, which the
        # harness puts before the response.
        start = len(tokenizer(prompt if chat else instruction)["input_ids"])
        for text in texts:
            ids = torch.tensor([tokenizer(prompt + text)["input_ids"]])
            with torch.no_grad():
                logs = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
            found.append(logs[range(start - 1, ids.shape[1] - 1), ids[0, start:]].numpy())
    return [found[i : i + 2] for i in range(0, len(found), 2)]


@pytest.mark.parametrize("chat", [False, True])
def test_win_rates_equal_a_transformers_computation(mirror, model, chat):
    run = evaluate(["ultrafeedback_winrate"], model, apply_chat_template=chat, batch_size=2)
    table, samples = run["results"]["ultrafeedback_winrate"], run["samples"]["ultrafeedback_winrate"]
    expected = token_log_probs(model, chat)
    for sample, pair in zip(samples, expected, strict=True):
        assert [resp[0][0] for resp in sample["resps"]] == pytest.approx([x.sum() for x in pair], abs=1e-3)
        assert [resp[0][2] for resp in sample["resps"]] == [len(x) for x in pair]
    wins = [chosen.sum() > rejected.sum() + 1e-6 for chosen, rejected in expected]
    averages = [chosen.mean() > rejected.mean() + 1e-6 for chosen, rejected in expected]
    assert table["win_rate,none"] == np.mean(wins)
    assert table["win_rate_avg,none"] == np.mean(averages)
    assert table["ties,none"] == 0.25
    assert table["cut,none"] == 0.0
    assert wins != averages
    assert (table["win_rate_low,none"], table["win_rate_high,none"]) == wilson(sum(wins), len(wins))


def test_truncated_pairs_are_counted(mirror, tmp_path):
    write(mirror, [*PAIRS, ("Which " * 100, "option A", "option B")])
    run = evaluate(["ultrafeedback_winrate"], save_tiny(tmp_path / "short", context=64))
    assert run["results"]["ultrafeedback_winrate"]["cut,none"] == 0.2


def test_response_longer_than_the_context_is_refused(mirror, tmp_path):
    write(mirror, [*PAIRS, ("Which?", "option " * 100, "option B")])
    with pytest.raises(UserError, match="1 responses are longer than the model's 64 tokens, the longest has 10"):
        evaluate(["ultrafeedback_winrate"], save_tiny(tmp_path / "short", context=64))


def test_pair_with_an_empty_response_is_skipped_and_logged(mirror, model, caplog):
    write(mirror, [*PAIRS, ("Which?", "option A", " ")])
    run = evaluate(["ultrafeedback_winrate"], model)
    assert len(run["samples"]["ultrafeedback_winrate"]) == 4
    assert "1 of 5 pairs have an empty text and are left out, rows [4]" in caplog.text


def test_missing_response_is_refused_with_its_row(mirror, model):
    write(mirror, [*PAIRS, ("Which?", None, "x")])
    with pytest.raises(UserError, match=r"train row 4 holds .*'chosen': None"):
        evaluate(["ultrafeedback_winrate"], model)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *_: (-1.0, False), "the same log-likelihood"),
        (lambda _, text: (math.nan, False), "no finite log-likelihood"),
        (lambda _, text: (-float(len(text)), False), "the token count of a response"),
    ],
)
def test_backend_without_token_counts_or_scores_is_refused(mirror, answer, message):
    with pytest.raises(UserError, match=message):
        evaluate(["ultrafeedback_winrate"], FakeLM(answer))
