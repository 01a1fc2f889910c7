import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from calibtune.data.tokens import TokenExample
from calibtune.errors import UserError
from calibtune.models.loading import add_adapter
from calibtune.recipe import make_recipe
from calibtune.tuning import estep
from calibtune.tuning.estep import EStep, _shared, score, score_bins
from calibtune.tuning.targets import bin_accuracies, bin_of, bins_tensor, target_probs
from harness_ext.binning import bin_index, bin_table

#: Confidences .96, .52 and .42 (three letters).
SCORES = np.log(np.array([[0.96, 0.02, 0.01, 0.01], [0.2, 0.52, 0.14, 0.14], [0.42, 0.33, 0.25, np.nan]]))
GOLD = np.array([0, 0, 2])
TABLE = bin_table([0.95, 0.97, 0.55, 0.45], [1, 0, 1, 0], 10)


def recipe(**changes):
    return make_recipe({"method": "rcft", "model": "m", "tasks": "t", **changes}, {})


def letters(rows=(0, 1, 2)):
    return torch.tensor(np.nan_to_num(SCORES[list(rows)], nan=-np.inf), dtype=torch.float32)


def target(step, rows=(0, 1, 2)):
    batch = {"row": torch.tensor(rows), "gold": torch.tensor(GOLD[list(rows)]), "letter_ids": torch.zeros(len(rows), 4)}
    return step.target(step.given(batch), letters(rows))


def test_bins_hold_count_accuracy_and_confidence_of_the_scored_questions():
    table = score_bins(SCORES, GOLD, 10)
    assert table.count.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert table.accuracy[[4, 5, 9]].tolist() == [0.0, 0.0, 1.0]
    assert table.confidence[9] == pytest.approx(0.96)


def test_targets_take_the_accuracy_of_each_questions_bin():
    step = EStep(recipe())
    step.take(0, TABLE, SCORES)
    q = target(step)
    assert q[[0, 1, 2], [0, 1, 0]].tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert q.sum(1).tolist() == pytest.approx([1, 1, 1])
    expected = target_probs(torch.tensor(np.exp(SCORES[:1])), torch.tensor([0.5]))
    assert q[0].tolist() == pytest.approx(expected[0].tolist(), abs=1e-6)
    # Rows are looked up by their number, whatever the batch.
    assert torch.equal(target(step, (2, 0)), q[[2, 0]])


def test_confidences_are_put_into_bins_in_float64():
    step = EStep(recipe(bins=25))
    # 1/25 is an edge, and in float32 below it.
    step.take(0, bin_table([0.03, 0.05], [0, 1], 25), np.full((1, 25), np.log(0.04)))
    assert float(step.targets[0, 0]) == 1


@pytest.mark.parametrize("kind", ["epoch", "bins"])
@pytest.mark.parametrize("mapping", ["simplified", "general"])
def test_targets_leave_absent_letters_out_and_follow_the_recipes_mapping(kind, mapping):
    step = EStep(recipe(e_step=kind, mapping=mapping))
    step.take(0, TABLE, SCORES if kind == "epoch" else None)
    accuracy = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)
    expected = target_probs(torch.tensor(np.exp(SCORES)), accuracy, mapping)
    assert torch.allclose(target(step), expected.nan_to_num(0.0).float(), atol=1e-5)


@pytest.mark.parametrize("kind", ["epoch", "bins"])
def test_the_top_bin_can_be_left_out_as_in_the_released_code(kind):
    step = EStep(recipe(e_step=kind, skip_top_bin=True))
    step.take(0, TABLE, SCORES if kind == "epoch" else None)
    assert target(step).isnan().all(1).tolist() == [True, False, False]


def test_only_the_top_bin_is_left_out():
    step = EStep(recipe(skip_top_bin=True))
    step.take(0, TABLE, np.log([[0.91, 0.09], [0.89, 0.11]]))
    assert step.targets.isnan().all(1).tolist() == [True, False]


def test_bins_are_due_in_each_epoch_or_once():
    for kind, due in (
        ("epoch", [True, True]),
        ("bins", [True, True]),
        ("running", [True, True]),
        ("once", [True, False]),
    ):
        step = EStep(recipe(e_step=kind))
        found = []
        for epoch in range(2):
            found.append(step.due(epoch))
            if step.due(epoch):
                step.take(epoch, TABLE, None)
            assert not step.due(epoch)
        assert found == due, kind


def test_without_scores_targets_come_from_the_forward_pass_under_the_same_bins():
    exact = EStep(recipe())
    exact.take(0, TABLE, SCORES)
    for kind in ("bins", "once"):
        free = EStep(recipe(e_step=kind))
        free.take(0, TABLE, None)
        assert torch.allclose(target(exact), target(free), atol=1e-6)


def test_an_e_step_without_scores_forgets_the_targets_of_one_with_them():
    step, free = EStep(recipe()), EStep(recipe(e_step="bins"))
    other = bin_table([0.95, 0.55, 0.45], [0, 0, 1], 10)
    step.take(0, TABLE, SCORES)
    step.take(1, other, None)
    free.take(1, other, None)
    assert torch.equal(target(step), target(free))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 30))
def test_bins_on_the_accelerator_are_the_harnesss(values, count):
    """At the edges too, and next to them."""
    edges = np.arange(count + 1) / count
    values = np.concatenate([values, edges, np.nextafter(edges, 0).clip(0), np.nextafter(edges, 1).clip(0, 1)])
    table = bin_table(values, values > 0.5, count)
    bins = bins_tensor(table)
    assert bin_of(torch.tensor(values), bins).tolist() == bin_index(values, count).tolist()
    assert bins[1].tolist() == bin_accuracies(table).tolist()


def test_what_passes_gave_stands_for_scores_of_the_next_epoch():
    step = EStep(recipe(e_step="running"))
    assert step.known() is None
    step.take(0, TABLE, SCORES)
    np.testing.assert_array_equal(step.known(), SCORES)
    step.note({"row": torch.tensor([2])}, letters((0,))[:, [1, 0, 2]])  # a batch may have fewer letters than the widest
    step.note({"row": torch.tensor([0])}, letters((1,)))
    expected = np.stack([SCORES[1], SCORES[1], [SCORES[0, 1], SCORES[0, 0], SCORES[0, 2], np.nan]])
    np.testing.assert_allclose(step.known(), expected, rtol=1e-6)
    # Targets stay where the E-step has set them.
    assert target(step)[0, 0] == 0.5
    step.take(1, TABLE, SCORES)
    np.testing.assert_array_equal(step.known(), SCORES)


def test_a_letter_that_a_question_lacks_stays_unknown():
    step = EStep(recipe(e_step="running"))
    step.take(0, TABLE, SCORES)
    step.note({"row": torch.tensor([0, 2])}, letters((0, 2)))
    assert np.isnan(step.known()).tolist() == np.isnan(SCORES).tolist()


@pytest.mark.parametrize("kind", ["epoch", "bins", "running"])
def test_what_is_saved_comes_back(tmp_path, kind):
    step = EStep(recipe(e_step=kind))
    step.take(3, TABLE, None if kind == "bins" else SCORES)
    step.note({"row": torch.tensor([0])}, letters((1,)))
    assert (step.passes is None) == (kind != "running")
    step.save(tmp_path)
    again = EStep(recipe(e_step=kind))
    again.load(tmp_path)
    assert again.epoch == 3
    assert again.table.count.tolist() == TABLE.count.tolist()
    np.testing.assert_array_equal(again.table.accuracy, TABLE.accuracy)
    assert torch.equal(target(again), target(step))
    np.testing.assert_equal(again.known(), step.known())


def test_a_running_e_step_of_an_earlier_version_is_not_resumed_as_this_one(tmp_path):
    step = EStep(recipe(e_step="running"))
    step.take(0, TABLE, SCORES)
    step.save(tmp_path)
    state = json.loads((tmp_path / "estep.json").read_text())
    (tmp_path / "estep.json").write_text(json.dumps({**state, "seen": []}))
    with pytest.raises(UserError, match="begin anew with --overwrite"):
        EStep(recipe(e_step="running")).load(tmp_path)


def test_what_all_prompts_begin_with_is_computed_once_and_changes_no_score(model, monkeypatch):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    system = tuple(range(270, 290))
    questions = [(301,), (301, 302), (310, 311, 312), (7, 8, 9, 10, 11)]
    examples = [TokenExample(system + own, (60, 61, 62), 0, i) for i, own in enumerate(questions)]
    fed = []
    monkeypatch.setattr(estep, "LARGER", 2)
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


def test_scoring_has_no_dropout_and_compiles_nothing(model):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = add_adapter(loaded, make_recipe({"method": "cft", "model": "m", "tasks": "t", "lora_dropout": 0.5}, {}))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    examples = [TokenExample((270 + i, 271, 272), (60, 61), 0, i) for i in range(3)]

    def fails(*_):
        raise AssertionError("compiled")

    loaded.model.layers[0].compile(backend=fails)
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
    rows, repeated = [], estep.repeated
    monkeypatch.setattr(estep, "repeated", lambda cache, count: rows.append(count) or repeated(cache, count))
    score(loaded, examples, 0, 1)
    assert sum(rows) == 50
    assert max(rows) == 10  # of 42 tokens each, in a pass for LARGER times the average of 53.6
