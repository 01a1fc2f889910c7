import hashlib
import math
from dataclasses import replace

import pytest
import torch

from calibtune.demo import PRETRAINED
from calibtune.demo.prompts import build_bank
from calibtune.demo.train import ALIGNMENT, PRETRAINING, at_answer, dpo_loss, pretraining_loss, rebuild


@pytest.fixture(scope="module")
def bank():
    return build_bank()


def test_pretraining_loss_by_hand():
    # Two prompts of 3 and 2 tokens over a vocabulary of 3; the padding counts nowhere.
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2]] * 3, [[0.1, 0.1, 0.8]] * 3]))
    inputs = {
        "input_ids": torch.tensor([[0, 1, 2], [1, 2, 0]]),
        "lengths": torch.tensor([3, 2]),
        "answer": torch.tensor([0, 1]),
    }
    answer = -(math.log(0.5) + math.log(0.1)) / 2
    question = -(math.log(0.3) + math.log(0.2) + math.log(0.8)) / 3
    assert pretraining_loss(logits, inputs).item() == pytest.approx(answer + question, rel=1e-6)
    assert at_answer(logits, inputs).exp()[1].tolist() == pytest.approx([0.1, 0.1, 0.8])


def test_dpo_loss_by_hand():
    reference = torch.log(torch.tensor([[0.5, 0.5]]))
    policy = torch.log(torch.tensor([[0.8, 0.2]]))
    chosen, rejected = torch.tensor([0]), torch.tensor([1])
    assert dpo_loss(reference, reference, chosen, rejected, 0.1).item() == pytest.approx(math.log(2))
    expected = math.log(1 + math.exp(-0.1 * math.log(0.8 / 0.2)))
    assert dpo_loss(policy, reference, chosen, rejected, 0.1).item() == pytest.approx(expected)
    assert dpo_loss(policy, reference, rejected, chosen, 0.1) > math.log(2)


def test_rebuild_is_reproducible_by_seed(bank, tmp_path):
    pretraining = replace(PRETRAINING, steps=4, questions=8, warmup_steps=1)
    alignment = replace(ALIGNMENT, steps=3, questions=8)
    made = {}
    for name, stage in (("a", pretraining), ("b", pretraining), ("c", replace(pretraining, seed=9))):
        folders = rebuild(bank, tmp_path / name, stage, alignment)
        made[name] = [hashlib.sha256((f / "model.safetensors").read_bytes()).hexdigest() for f in folders]
    assert made["a"] == made["b"]
    assert made["a"][0] != made["c"][0]
    assert made["a"][0] != made["a"][1]
    for kept in ("config.json", "tokenizer.json", "chat_template.jinja"):
        shipped = PRETRAINED / kept
        assert (tmp_path / "a" / "pretrained" / kept).read_text() == shipped.read_text()
