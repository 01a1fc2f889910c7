import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from calibtune.data.tokens import TokenExample
from calibtune.models import scores
from calibtune.models.scores import _shared, score
from calibtune.recipe import make_recipe
from calibtune.tuning.trainable import add_adapter


def test_what_all_prompts_begin_with_is_computed_once_and_changes_no_score(model, monkeypatch):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    system = tuple(range(270, 290))
    questions = [(301,), (301, 302), (310, 311, 312), (7, 8, 9, 10, 11)]
    examples = [TokenExample(system + own, (60, 61, 62), 0, i) for i, own in enumerate(questions)]
    fed = []
    monkeypatch.setattr(scores, "LARGER", 2)
    with loaded.register_forward_pre_hook(
        lambda _, args, options: fed.append((args[0] if args else options["input_ids"]).shape), with_kwargs=True
    ):
        together = score(loaded, examples, 0, 1)
    assert fed == [(1, 20), (1, 5), (1, 3), (2, 2)]
    alone = [score(loaded, [example], 0, 1)[0] for example in examples]
    assert together == pytest.approx(np.array(alone), abs=1e-5)


def test_a_prefix_that_is_little_of_the_work_is_not_kept_for_each_prompt(model):
    system, rest = tuple(range(270, 290)), tuple(range(100, 190))
    examples = [TokenExample((*system, i, *rest), (60, 61), 0, i) for i in range(3)]
    assert _shared(examples) == 0
    assert _shared([TokenExample((*system, i, *rest[:70]), (60, 61), 0, i) for i in range(3)]) == 20


def test_scoring_has_no_dropout(model):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = add_adapter(loaded, make_recipe({"method": "cft", "model": "m", "tasks": "t", "lora_dropout": 0.5}, {}))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    examples = [TokenExample((270 + i, 271, 272), (60, 61), 0, i) for i in range(3)]
    assert np.array_equal(score(tuned.train(), examples, 0, 2), score(tuned.eval(), examples, 0, 2))


def test_a_prompt_that_is_the_beginning_of_all_others_keeps_a_token_of_its_own(model):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    system = tuple(range(270, 290))
    examples = [TokenExample(prompt, (60, 61), 0, 0) for prompt in (system, (*system, 301))]
    together = score(loaded, examples, 0, 2)
    assert together == pytest.approx(np.array([score(loaded, [example], 0, 1)[0] for example in examples]), abs=1e-5)


def test_a_shared_beginning_counts_for_each_question_that_it_is_kept_for(model, monkeypatch):
    head, loaded = tuple(range(100, 140)), AutoModelForCausalLM.from_pretrained(model)
    lengths = [2] * 40 + [60] * 10
    examples = [TokenExample(head + tuple(range(200 + i, 200 + i + n)), (60, 61), 0, i) for i, n in enumerate(lengths)]
    rows, repeated = [], scores.repeated
    monkeypatch.setattr(scores, "repeated", lambda cache, count: rows.append(count) or repeated(cache, count))
    score(loaded, examples, 0, 1)
    assert sum(rows) == 50
    assert max(rows) == 10  # of 42 tokens each, in a pass for LARGER times the average of 53.6
