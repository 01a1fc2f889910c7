import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import evaluate
from transformers import AutoTokenizer

from calibtune.data.encoder import Encoder
from calibtune.data.examples import Prompts
from calibtune.data.tasks import load_tasks
from calibtune.demo import ALIGNED, CHECKPOINTS, PRETRAINED
from calibtune.demo.prompts import build_bank
from calibtune.demo.tokenizer import CONTEXT, UNKNOWN, build_tokenizer
from calibtune.demo.train import ALIGNMENT, PRETRAINING, at_answer, dpo_loss, pretraining_loss, rebuild
from calibtune.files import read_json
from harness_ext.prompts import doc_to_text
from harness_ext.world.facts import facts
from harness_ext.world.questions import splits

TASKS = ["mc_calib_world", "mc_calib_world_ood"]


@pytest.fixture(scope="module")
def bank():
    return build_bank()


@pytest.fixture(scope="module")
def shipped():
    return AutoTokenizer.from_pretrained(PRETRAINED)


def chat_prompts(tokenizer):
    task = load_tasks(["mc_calib_world"])[0]
    return Prompts(task, Encoder(tokenizer), apply_chat_template=True)


def test_tokenizer_knows_every_word_of_the_questions(shipped):
    prompts = chat_prompts(shipped)
    plain = Prompts(prompts.task, prompts.encoder, apply_chat_template=False)
    unknown = shipped.convert_tokens_to_ids(UNKNOWN)
    for docs in splits().values():
        for doc in docs[::20]:
            for way in (prompts, plain):
                assert unknown not in shipped(way.example(doc).context)["input_ids"]
    every_word = " ".join(doc_to_text(doc) for docs in splits().values() for doc in docs)
    assert unknown not in shipped(every_word)["input_ids"]
    assert unknown in shipped("Which quark?")["input_ids"]


def test_letters_are_single_tokens_with_and_without_a_space(shipped):
    ids = {letter: shipped(letter, add_special_tokens=False)["input_ids"] for letter in "ABCD"}
    assert all(len(tokens) == 1 for tokens in ids.values())
    assert len({tokens[0] for tokens in ids.values()}) == 4
    assert all(shipped(f" {letter}", add_special_tokens=False)["input_ids"] == ids[letter] for letter in ids)


def test_shipped_tokenizers_equal_the_built_one(bank):
    for folder in (PRETRAINED, ALIGNED):
        shipped = AutoTokenizer.from_pretrained(folder)
        assert shipped.get_vocab() == bank.tokenizer.get_vocab()
        assert shipped.chat_template == bank.tokenizer.chat_template


def test_custom_system_message_is_one_token():
    tokenizer = build_tokenizer("Say a letter.\n\n")
    assert "Say a letter." in tokenizer.tokenize("Say a letter. Which color?")


def test_pretraining_prompts_equal_harness_prompts(bank):
    prompts = chat_prompts(bank.tokenizer)
    batch = bank.draw(64, np.random.RandomState(0))
    rendered = {
        tuple(bank.tokenizer(prompts.example(doc).context, add_special_tokens=False)["input_ids"])
        for docs in splits().values()
        for doc in docs
    }
    drawn = [tuple(ids[:length]) for ids, length in zip(batch.input_ids, batch.lengths, strict=True)]
    # Seven thousand of the world's 17,280 prompts are evaluated or fitted on.
    assert sum(prompt in rendered for prompt in drawn) >= 15
    assert max(batch.lengths) <= CONTEXT
    assert (batch.input_ids[np.arange(64), batch.lengths - 1] == drawn[0][-1]).all()


def test_drawn_answers_follow_p_star_at_any_position():
    fact = facts()[3]
    bank = build_bank([fact])
    tokenizer = bank.tokenizer
    batch = bank.draw(4000, np.random.RandomState(0))
    letters = tokenizer.convert_tokens_to_ids(list("ABCD"))
    counts = dict.fromkeys(fact.values, 0)
    for ids, answer in zip(batch.input_ids.tolist(), batch.answer.tolist(), strict=True):
        counts[tokenizer.convert_ids_to_tokens(ids[ids.index(answer) + 2])] += 1
    opened = bank.draw_open(4000, np.random.RandomState(1))
    for value, p in zip(fact.values, fact.p_star, strict=True):
        slack = 4 * math.sqrt(p * (1 - p) / 4000)
        assert abs(counts[value] / 4000 - p) < slack
        assert abs((opened.answer == tokenizer.convert_tokens_to_ids(value)).mean() - p) < slack
    slack = 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert all(abs((batch.answer == letter).mean() - 0.25) < slack for letter in letters)
    assert not (batch.answer == batch.other).any()
    assert not (opened.answer == opened.other).any()


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


def test_checkpoints_are_under_5_mb_and_float32(shipped):
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) < 5e6
    for folder in (PRETRAINED, ALIGNED):
        assert read_json(folder / "config.json")["dtype"] == "float32"


@pytest.fixture(scope="module")
def results():
    return {
        folder.name: evaluate(TASKS, folder, apply_chat_template=True, batch_size=128)["results"]
        for folder in (PRETRAINED, ALIGNED)
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_pretrained_model_is_calibrated_and_near_acc_star(results, task):
    found = results["pretrained"][task]
    assert found["conf_ece_10,none"] < 0.04
    assert found["acc_true,none"] > found["acc_star,none"] - 0.04
    assert found["tce,none"] < 0.25
    assert found["letter_mass,none"] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_aligned_model_keeps_accuracy_and_loses_calibration(results, task):
    before, after = results["pretrained"][task], results["aligned"][task]
    assert after["acc_true,none"] > before["acc_true,none"] - 0.04
    assert after["conf_ece_10_low,none"] > before["conf_ece_10_high,none"] + 0.1
    assert after["conf_ece_10,none"] > 0.2
    assert after["nll,none"] > before["nll,none"] + 0.2
    assert after["tce,none"] > 2 * before["tce,none"]
