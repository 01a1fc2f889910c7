import math

import numpy as np
import pytest

from calibtune.data.encoder import Encoder
from calibtune.data.examples import Prompts
from calibtune.data.tasks import load_tasks
from calibtune.demo.prompts import build_bank
from calibtune.demo.tokenizer import CONTEXT
from harness_ext.world.facts import facts
from harness_ext.world.questions import splits


@pytest.fixture(scope="module")
def bank():
    return build_bank()


def chat_prompts(tokenizer):
    task = load_tasks(["mc_calib_world"])[0]
    return Prompts(task, Encoder(tokenizer), apply_chat_template=True)


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
