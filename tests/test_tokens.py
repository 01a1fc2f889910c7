"""Batches of like lengths, and a step's batch in parts."""

import pytest
import torch
from fitting import METHODS, same_weights, small_fit
from hypothesis import given
from hypothesis import strategies as st

from calibtune import trainer
from calibtune.tokens import TokenExample, collate, even_batches, parts


def batch_of(lengths, multiple=1):
    rows = [TokenExample(tuple(range(1, n + 1)), (60, 61, 62)[: 2 + n % 2], n % 2, i) for i, n in enumerate(lengths)]
    return collate(rows, 0, multiple=multiple)


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(1, 3000))
def test_batches_hold_each_prompt_once_and_no_more_tokens_than_asked_for(lengths, most):
    batches = even_batches(lengths, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most


def test_a_few_long_prompts_do_not_lengthen_the_batches_of_the_short_ones():
    lengths = [600, 500, 90, *range(40, 80)] * 10
    most = 64 * sum(lengths) / len(lengths)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in even_batches(lengths, most))
    assert padded < 1.15 * sum(lengths)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 200), st.sampled_from([1, 8]))
def test_parts_hold_a_batchs_questions_once_with_no_more_padding_than_needed(lengths, most, multiple):
    batch = batch_of(lengths, multiple)
    found = parts(batch, most, multiple)
    assert sum(float(part["share"]) for part in found) == pytest.approx(1)
    assert sorted(row for part in found for row in part["row"].tolist()) == list(range(len(lengths)))
    for part in found:
        rows, width = part["row"].tolist(), part["input_ids"].shape[1]
        assert width == -(-max(lengths[row] for row in rows) // multiple) * multiple
        assert torch.equal(part["input_ids"], batch["input_ids"][rows, :width])
        assert torch.equal(part["letter_ids"], batch["letter_ids"][rows])


def test_a_batch_within_its_tokens_is_one_part():
    batch = batch_of([9, 3, 4])
    (part,) = parts(batch, 27)
    assert float(part.pop("share")) == 1
    assert part.keys() == batch.keys()
    assert all(torch.equal(part[name], batch[name]) for name in batch)
    assert [part["row"].tolist() for part in parts(batch, 26)] == [[0], [2, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_parts_trains_as_in_one_piece(model, tmp_path, mirror, monkeypatch, method):
    counts = []

    def counted(*args):
        counts.append(len(found := parts(*args)))
        return found

    monkeypatch.setattr(trainer, "parts", counted)
    whole = small_fit(model, tmp_path / "whole", method, learning_rate=1e-3, gradient_accumulation=2)
    assert set(counts) == {1}
    counts.clear()
    monkeypatch.setattr(trainer, "most_tokens", lambda rows, batch_size: 60)
    cut = small_fit(model, tmp_path / "parts", method, learning_rate=1e-3, gradient_accumulation=2)
    assert min(counts) >= 2
    assert same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=1e-5)
    assert cut.after == pytest.approx(whole.after, rel=1e-4)


def test_a_sharded_models_step_is_never_cut(model, tmp_path, mirror, monkeypatch):
    cuts = []
    monkeypatch.setattr(trainer, "parts", lambda batch, most, _: cuts.append(most) or parts(batch, most))
    monkeypatch.setattr(trainer, "is_sharded", lambda: True)
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    assert cuts == [float("inf")]
