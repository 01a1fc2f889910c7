import numpy as np
import pytest
import torch

from calibtune.recipe import make_recipe
from calibtune.tuning.estep import EStep, score_bins
from calibtune.tuning.targets import target_probs
from harness_ext.binning import bin_table

#: Confidences .96, .52 and .42 (three letters).
SCORES = np.log(np.array([[0.96, 0.02, 0.01, 0.01], [0.2, 0.52, 0.14, 0.14], [0.42, 0.33, 0.25, np.nan]]))
GOLD = np.array([0, 0, 2])
TABLE = bin_table([0.95, 0.97, 0.55, 0.45], [1, 0, 1, 0], 10)


def recipe(**changes):
    return make_recipe({"method": "rcft", "model": "m", "tasks": "t", **changes}, {})


def letters(rows=(0, 1, 2)):
    return torch.tensor(np.nan_to_num(SCORES[list(rows)], nan=-np.inf), dtype=torch.float32)


def target(step, rows=(0, 1, 2)):
    return step.batch_targets({"row": torch.tensor(rows), "letter_ids": torch.zeros(len(rows), 4)})["target"]


def test_score_bins_gives_count_accuracy_and_confidence():
    table = score_bins(SCORES, GOLD, 10)
    assert table.count.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert table.accuracy[[4, 5, 9]].tolist() == [0.0, 0.0, 1.0]
    assert table.confidence[9] == pytest.approx(0.96)


def test_targets_use_the_accuracy_of_each_questions_bin():
    step = EStep(recipe())
    step.take(0, TABLE, SCORES)
    q = target(step)
    assert q[[0, 1, 2], [0, 1, 0]].tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert q.sum(1).tolist() == pytest.approx([1, 1, 1])
    expected = target_probs(np.exp(SCORES[:1]), np.array([0.5]))
    assert q[0].tolist() == pytest.approx(expected[0].tolist(), abs=1e-6)
    # Rows are looked up by their number, whatever the batch.
    assert torch.equal(target(step, (2, 0)), q[[2, 0]])


def test_confidences_are_binned_in_float64():
    step = EStep(recipe(bins=25))
    # 1/25 is an edge, and in float32 below it.
    step.take(0, bin_table([0.03, 0.05], [0, 1], 25), np.full((1, 25), np.log(0.04)))
    assert float(step.targets[0, 0]) == 1


@pytest.mark.parametrize("mapping", ["simplified", "general"])
def test_targets_follow_the_recipes_mapping_and_skip_absent_letters(mapping):
    step = EStep(recipe(mapping=mapping))
    step.take(0, TABLE, SCORES)
    expected = np.nan_to_num(target_probs(np.exp(SCORES), np.array([0.5, 1.0, 0.0]), mapping))
    assert target(step).numpy() == pytest.approx(expected, abs=1e-5)


def test_confidence_on_an_edge_uses_the_bin_above():
    table = bin_table([0.2, 0.3], [0, 1], 10)  # .3 lies on an edge and belongs to the bin above it
    step = EStep(recipe())
    step.take(0, table, np.log([[0.3, 0.28, 0.22, 0.2], [0.29, 0.27, 0.23, 0.21]]))
    assert step.targets[:, 0].tolist() == [1.0, 0.0]


def test_batch_has_no_target_before_the_first_e_step():
    assert EStep(recipe()).epoch == -1
    assert EStep(recipe()).batch_targets({"row": torch.tensor([0]), "letter_ids": torch.zeros(1, 4)}) == {}


def test_running_e_step_reuses_training_scores():
    step = EStep(recipe(e_step="running"))
    assert step.latest_scores() is None
    step.take(0, TABLE, SCORES)
    np.testing.assert_array_equal(step.latest_scores(), SCORES)
    step.note({"row": torch.tensor([2])}, letters((0,))[:, [1, 0, 2]])  # a batch may have fewer letters than the widest
    step.note({"row": torch.tensor([0])}, letters((1,)))
    expected = np.stack([SCORES[1], SCORES[1], [SCORES[0, 1], SCORES[0, 0], SCORES[0, 2], np.nan]])
    np.testing.assert_allclose(step.latest_scores(), expected, rtol=1e-6)
    # Targets stay where the E-step has set them.
    assert target(step)[0, 0] == 0.5
    step.take(1, TABLE, SCORES)
    np.testing.assert_array_equal(step.latest_scores(), SCORES)


def test_absent_letters_stay_nan_in_the_latest_scores():
    step = EStep(recipe(e_step="running"))
    step.take(0, TABLE, SCORES)
    step.note({"row": torch.tensor([0, 2])}, letters((0, 2)))
    assert np.isnan(step.latest_scores()).tolist() == np.isnan(SCORES).tolist()


def test_save_and_load_round_trip(tmp_path):
    step = EStep(recipe())
    step.take(3, TABLE, SCORES)
    step.note({"row": torch.tensor([0])}, letters((1,)))
    step.save(tmp_path)
    again = EStep(recipe())
    again.load(tmp_path)
    assert again.epoch == 3
    assert torch.equal(again.targets, step.targets)
    np.testing.assert_equal(again.latest_scores(), step.latest_scores())
