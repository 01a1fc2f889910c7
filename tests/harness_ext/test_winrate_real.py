"""Win rates on the real UltraFeedback pairs, against a transformers computation."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness import evaluate
from tiny import save_tiny

HUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "hub"
PAIRS = HUB / "argilla" / "ultrafeedback-binarized-preferences" / "data" / "train.jsonl"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PAIRS.is_file(), reason="needs the data mirror ../shared/data/hub"),
]


def plain_log_probability(model, tokenizer, instruction, response):
    """Return a response's summed log-probability after the templated instruction, and its token count."""
    import torch

    messages = [{"role": "user", "content": instruction.strip()}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The response begins where the whole text leaves the prompt's tokens; a last newline is the prompt's.
    context, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + response)["input_ids"]
    start = next((i for i, pair in enumerate(zip(context, whole, strict=False)) if len(set(pair)) > 1), len(context))
    ids = torch.tensor([whole])
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return float(logs[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()), ids.shape[1] - start


def assert_scores_equal(folder, samples, numbers):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model = model.float()
    for number in numbers:
        sample = samples[number]
        for response, name in zip(sample["resps"], ("chosen", "rejected"), strict=True):
            expected, tokens = plain_log_probability(
                model, tokenizer, sample["doc"]["instruction"], sample["doc"][name]
            )
            assert response[0][0] == pytest.approx(expected, rel=1e-4)
            assert response[0][2] == tokens


def test_all_nonempty_ultrafeedback_pairs_are_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(HUB)
    # Attention over thousands of tokens takes nearly all the time, so it has one head.
    model = save_tiny(tmp_path / "model", context=32768, layers=1, heads=1)
    run = evaluate(["ultrafeedback_winrate"], model, apply_chat_template=True, batch_size=1)
    samples = sorted(run["samples"]["ultrafeedback_winrate"], key=lambda sample: sample["doc_id"])
    assert len(samples) == 998
    assert_scores_equal(model, samples, range(0, 998, 111))
    table = run["results"]["ultrafeedback_winrate"]
    sums = np.array([[response[0][0] for response in sample["resps"]] for sample in samples])
    counts = np.array([[response[0][2] for response in sample["resps"]] for sample in samples])
    assert table["win_rate,none"] == np.mean(sums[:, 0] > sums[:, 1])
    assert table["win_rate_avg,none"] == np.mean((sums / counts)[:, 0] > (sums / counts)[:, 1])
    assert table["ties,none"] == np.mean(sums[:, 0] == sums[:, 1])
    assert table["cut,none"] == 0
    lines = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    assert len(lines) == 1000
    # A random model's sum falls with each token, so the shorter response wins.
    assert np.mean((counts[:, 0] < counts[:, 1]) == (sums[:, 0] > sums[:, 1])) > 0.9


def test_real_model_scores_equal_a_transformers_computation(smollm2, monkeypatch):
    monkeypatch.chdir(HUB)
    run = evaluate(["ultrafeedback_winrate"], smollm2, apply_chat_template=True, batch_size=2, limit=1)
    assert_scores_equal(smollm2, run["samples"]["ultrafeedback_winrate"], range(1))
