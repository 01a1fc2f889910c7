"""Batches of like lengths, and a step's batch in parts."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from fitting import METHODS, same_weights, small_fit
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build_tokenizer
from transformers import PreTrainedTokenizerBase

from calibtune.data.encoder import Encoder
from calibtune.data.examples import LetterExample
from calibtune.data.tokens import TokenExample, collate, common_size, common_width, even_batches, parts, tokenize
from calibtune.data.training_set import GroupedOrder
from calibtune.tuning import trainer
from calibtune.tuning.memory import largest_part, most_tokens


def batch_of(lengths, few_shapes=False):
    rows = [TokenExample(tuple(range(1, n + 1)), (60, 61, 62)[: 2 + n % 2], n % 2, i) for i, n in enumerate(lengths)]
    return collate(rows, 0, few_shapes=few_shapes)


@pytest.mark.parametrize("end", ["<|assistant|>\n", " Answer:\n"])
def test_prompts_and_letters_are_encoded_many_in_a_call(monkeypatch, end):
    encoder = Encoder(build_tokenizer())
    letters = [("A", "B", "C")[: 2 + i % 2] for i in range(5)]
    examples = [LetterExample(f"Which of {i}?{end}", letters[i], 0, "", {}, None) for i in range(5)]
    pairs = [[encoder.encode(each.context, letter) for letter in each.letters] for each in examples]
    expected = [(tuple(pair[0][0]), tuple(ids[0] for _, ids in pair)) for pair in pairs]
    alone, encode = [], PreTrainedTokenizerBase.encode
    noted = lambda self, text, *args, **options: alone.append(text) or encode(self, text, *args, **options)  # noqa: E731
    monkeypatch.setattr(PreTrainedTokenizerBase, "encode", noted)
    assert [(each.input_ids, each.letter_ids) for each in tokenize(examples, encoder, 512)] == expected
    assert not any("Which" in text for text in alone)


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), max_size=60), st.integers(1, 3000), st.booleans())
def test_batches_hold_each_prompt_once_and_no_more_tokens_than_asked_for(lengths, most, few_sizes):
    batches = even_batches(lengths, most, few_sizes=few_sizes)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most
        assert not few_sizes or common_size(len(batch)) == len(batch)


@given(st.integers(1, 10**6))
def test_a_common_size_is_one_of_four_an_octave_and_at_most_a_fifth_smaller(count):
    size = common_size(count)
    assert 0.8 * count < size <= count
    assert common_size(size) == size
    assert len({common_size(n) for n in range(64, 128)}) == 4


def test_batches_of_few_sizes_leave_what_is_over_to_the_next_one():
    sizes = [list(map(len, even_batches([10] * 37, 1000, few_sizes=few))) for few in (False, True)]
    assert sizes == [[37], [32, 5]]


def test_a_few_long_prompts_do_not_lengthen_the_batches_of_the_short_ones():
    lengths = [600, 500, 90, *range(40, 80)] * 10
    most = 64 * sum(lengths) / len(lengths)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in even_batches(lengths, most))
    assert padded < 1.15 * sum(lengths)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 200), st.booleans())
def test_parts_hold_a_batchs_questions_once_with_no_more_padding_than_needed(lengths, most, few_shapes):
    batch = batch_of(lengths, few_shapes)
    found = parts(batch, most, few_shapes)
    assert all(len(part["row"]) == 1 or part["input_ids"].numel() <= most for part in found)
    assert sum(float(part["share"]) for part in found) == pytest.approx(1)
    assert sorted(row for part in found for row in part["row"].tolist()) == list(range(len(lengths)))
    for part in found:
        rows, width = part["row"].tolist(), part["input_ids"].shape[1]
        assert float(part["share"]) == pytest.approx(len(rows) / len(lengths))
        longest = max(lengths[row] for row in rows)
        assert width == (common_width(longest) if few_shapes else longest)
        assert torch.equal(part["input_ids"], batch["input_ids"][rows, :width])
        assert torch.equal(part["letter_ids"], batch["letter_ids"][rows])


@pytest.mark.parametrize(
    ("few_shapes", "least", "width"), [(False, 0, 9), (False, 30, 30), (True, 30, 32), (True, 2, 16)]
)
def test_a_batch_is_as_wide_as_another_processs_where_it_must_be(few_shapes, least, width):
    rows = [TokenExample(tuple(range(n)), (60, 61), 0, 0) for n in (9, 4)]
    batch = collate(rows, 0, few_shapes=few_shapes, least=least)
    assert batch["input_ids"].shape == (2, width)
    (part,) = parts(batch, 2 * width, few_shapes)
    assert part["input_ids"].shape == (2, width)
    assert part["answer"].tolist() == [8, 3]


@given(st.integers(1, 10**6))
def test_a_common_width_is_one_of_four_an_octave_at_most_a_quarter_longer(length):
    width = common_width(length)
    assert length <= width < max(1.25 * length, length + 8)
    assert len({common_width(n) for n in range(64, 129)} - {64}) == 4
    assert common_width(width) == width


@dataclass
class Lengths:
    """What the order asks of a training set."""

    lengths: list[int]
    seed: int = 0
    epoch: int = 0

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return TokenExample(tuple(range(self.lengths[index])), (60, 61), 0, index)


def test_processes_get_the_same_steps_as_one_and_prompts_as_long_as_each_others():
    data = Lengths([60 + (i * i) % 97 for i in range(90)] + list(range(150, 700, 55)))
    one = list(GroupedOrder(data, 8))
    order = GroupedOrder(data, 2, 2, 2)
    accumulated = list(order)
    for start in range(0, len(one), 8):
        step, passes = one[start : start + 8], [accumulated[i : i + 2] for i in range(start, start + 8, 2)]
        assert sorted(step) == sorted(accumulated[start : start + 8])
        # Passes go to the processes in turn; of four sorted questions one has the first and third, one the others.
        lengths = [[data.lengths[i] for i in rows] for rows in passes]
        for first, second in (lengths[:2], lengths[2:]):
            assert first[0] <= second[0] <= first[1] <= second[1]
        assert max(lengths[0] + lengths[1]) <= min(lengths[2] + lengths[3])
        # Both processes know the longest prompt of either.
        for rows in (passes[0] + passes[1], passes[2] + passes[3]):
            assert {order.longest[i] for i in rows} == {max(data.lengths[i] for i in rows)}


def test_a_fit_deals_its_steps_by_pass_part_and_process():
    args = SimpleNamespace(per_device_train_batch_size=2, gradient_accumulation_steps=3, world_size=4)
    fit = SimpleNamespace(args=args, questions=SimpleNamespace(train=Lengths(list(range(40, 90)))))
    order = trainer.CalibrationTrainer._get_train_sampler(fit)
    assert (order.per_pass, order.processes, order.batch_size) == (2, 4, 24)


def test_a_batch_within_its_tokens_is_one_part():
    batch = batch_of([9, 3, 4])
    (part,) = parts(batch, 27)
    assert float(part.pop("share")) == 1
    assert part.keys() == batch.keys()
    assert all(torch.equal(part[name], batch[name]) for name in batch)
    assert [part["row"].tolist() for part in parts(batch, 26)] == [[0], [2, 1]]


@pytest.mark.parametrize(
    "method", [pytest.param(each, marks=[pytest.mark.slow] * (each != "rcft")) for each in METHODS]
)
def test_a_step_in_parts_trains_as_in_one_piece(model, tmp_path, mirror, monkeypatch, method):
    sizes, losses = [], []
    step = trainer.CalibrationTrainer.training_step

    def counted(*args, **options):
        found = parts(*args, **options)
        sizes.append([len(part["row"]) for part in found])
        return found

    def noted(*args, **options):
        losses.append(float(loss := step(*args, **options)))
        return loss

    monkeypatch.setattr(trainer, "parts", counted)
    monkeypatch.setattr(trainer.CalibrationTrainer, "training_step", noted)
    options = {"learning_rate": 1e-3, "batch_size": 3, "gradient_accumulation": 2}
    whole = small_fit(model, tmp_path / "whole", method, **options)
    assert sizes == [[3]] * 6
    # Parts with other numbers of questions each.
    monkeypatch.setattr(trainer, "most_tokens", lambda rows, batch_size: 220)
    cut = small_fit(model, tmp_path / "parts", method, **options)
    assert sizes[6:] == [[1, 2]] * 6
    assert losses[6:] == pytest.approx(losses[:6], rel=1e-4)
    assert same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=1e-5)
    assert cut.after == pytest.approx(whole.after, rel=1e-4)


def test_a_sharded_models_step_is_never_cut(model, tmp_path, mirror, monkeypatch):
    cuts = []
    monkeypatch.setattr(trainer, "parts", lambda batch, most, few_shapes: cuts.append(most) or parts(batch, most))
    monkeypatch.setattr(trainer, "is_sharded", lambda: True)
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    assert cuts == [float("inf")]


def test_a_loss_that_is_not_finite_names_the_questions_of_all_parts(model, tmp_path, mirror, monkeypatch):
    from calibtune.errors import WorkFailed

    original, seen = trainer.method_loss, []

    def explodes(model, batch, *args):
        loss, letters = original(model, batch, *args)
        seen.append(batch["row"].tolist())
        return (loss * torch.nan if len(seen) == 1 else loss), letters

    monkeypatch.setattr(trainer, "method_loss", explodes)
    monkeypatch.setattr(trainer, "most_tokens", lambda rows, batch_size: 60)
    with pytest.raises(WorkFailed) as failed:
        small_fit(model, tmp_path / "out", "cft", gradient_accumulation=2)
    # A step's numbers are read when the next one has run.
    parts_of_first = seen[: len(seen) // 2]
    rows = sorted(row for part in parts_of_first for row in part)
    assert len(rows) == len(set(rows)) == 8
    assert f"the loss is nan and the gradient norm nan, on training questions {rows} (" in str(failed.value)


@pytest.mark.parametrize("e_step", [pytest.param("epoch", marks=pytest.mark.slow), "running"])
def test_a_fit_in_parts_resumes_in_mid_epoch_bit_for_bit(model, tmp_path, mirror, monkeypatch, e_step):
    options = {"epochs": 2, "save_every": 1, "lora_dropout": 0.05, "e_step": e_step}
    monkeypatch.setattr(trainer, "most_tokens", lambda rows, batch_size: 60)
    small_fit(model, tmp_path / "whole", "rcft", **options)
    step = trainer.CalibrationTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.CalibrationTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            small_fit(model, tmp_path / "cut", "rcft", **options)
    small_fit(model, tmp_path / "cut", "rcft", resume=True, **options)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def row(length):
    return TokenExample(tuple(range(1, length + 1)), (60, 61), 0, 0)


def test_a_pass_has_up_to_twice_an_average_batchs_tokens():
    assert most_tokens([row(4), row(8)], 16) == 2 * 16 * 6


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 8), st.randoms())
def test_auto_batch_tries_no_less_than_what_any_step_has(lengths, size, random):
    rows = [row(length) for length in lengths]
    for most in (most_tokens(rows, size), float("inf")):
        tried = collate(largest_part(rows, size, most), 0)["input_ids"].numel()
        for _ in range(5):
            step = random.sample(rows, min(size, len(rows)))
            assert all(part["input_ids"].numel() <= tried for part in parts(collate(step, 0), most))
