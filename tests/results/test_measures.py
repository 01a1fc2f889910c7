"""What tells an ECE's noise from its error, and missing knowledge from what calibration costs."""

import numpy as np
import pytest

from calibtune.results.measures import floor_measures, further_measures, harness_measures, refinement_measures
from harness_ext.calibration import brier, classwise_gaps, confidence_gaps, letter_log_softmax, nll, top
from harness_ext.estimators import debiased_cw_ece, debiased_ece
from harness_ext.floor import ece_floors
from harness_ext.refinement import held_out_temperatures


def simulated(rows=400, sharper=1.0, seed=0, letters=4):
    """Log-likelihoods of a model that is calibrated at T = `sharper`, and right answers."""
    rng = np.random.default_rng(seed)
    log_probs = letter_log_softmax(rng.normal(0, 1.5, (rows, letters)))
    gold = (np.exp(log_probs).cumsum(1)[:, :-1] < rng.random((rows, 1))).sum(1)
    return sharper * log_probs - 0.3, gold


@pytest.mark.parametrize("edge", ["left", "right"])
def test_floors_are_those_of_the_eces_beside_which_they_stand(edge):
    log_probs, gold = simulated()
    log_probs[::20] = np.log([0.5, 0.25, 0.125, 0.125])  # on edges of bins
    found = floor_measures(log_probs, gold, 2.0, (4, 8), edge)
    table = harness_measures(log_probs, gold, 2.0, (4, 8), edge)
    probs = np.exp(letter_log_softmax(log_probs, 2.0))
    confidence, predicted = top(probs)
    assert len(found) == 4 * 5
    for bins in (4, 8):
        debiased = debiased_ece(confidence, predicted == gold, bins), debiased_cw_ece(probs, gold, bins)
        for name, gaps, own in zip(("conf_ece", "cw_ece"), (confidence_gaps, classwise_gaps), debiased, strict=True):
            (floor,) = ece_floors(probs, [gaps(probs, gold, bins, edge)])
            key = f"{name}_{bins}"
            assert [found[f"{key}_{more}"] for more in ("floor", "floor_95", "p", "debiased")] == [*floor, own]
            assert found[f"{key}_excess"] == pytest.approx(table[key] - floor.mean, abs=1e-12)
            assert floor.mean < floor.high


def test_an_overconfident_model_is_told_from_a_calibrated_one():
    calibrated, overconfident = (floor_measures(*simulated(2000, sharper)) for sharper in (1, 2))
    for name in ("conf_ece_10", "cw_ece_10"):
        assert calibrated[f"{name}_p"] > 0.05
        assert abs(calibrated[f"{name}_excess"]) < calibrated[f"{name}_floor_95"] - calibrated[f"{name}_floor"]
        assert overconfident[f"{name}_p"] == 1 / 1001
        assert overconfident[f"{name}_excess"] > 0.05
        assert overconfident[f"{name}_debiased"] > calibrated[f"{name}_debiased"] + 0.05


def test_refinement_is_what_other_questions_temperature_leaves():
    log_probs, gold = simulated(100, 3.0)
    found = refinement_measures(log_probs, gold)
    scaled = letter_log_softmax(log_probs / held_out_temperatures(log_probs, gold)[:, None])
    assert found["nll_refined"] == nll(scaled, gold)
    assert found["brier_refined"] == brier(np.exp(scaled), gold)
    table = harness_measures(log_probs, gold, 1.5)
    for name in ("nll", "brier"):
        whole = refinement_measures(log_probs, gold, 1.5)
        assert whole[f"{name}_refined"] == found[f"{name}_refined"]
        assert whole[f"{name}_refined"] + whole[f"{name}_calibration"] == pytest.approx(table[name], abs=1e-12)


@pytest.mark.parametrize("sharper", [0.5, 1, 3])
def test_sharpening_costs_calibration_and_no_knowledge(sharper):
    # What a model knows is what the best T leaves; drawn from its probabilities, that is T = 1 of the unsharpened.
    log_probs, gold = simulated(4000, sharper)
    known = nll(letter_log_softmax(log_probs / sharper), gold)
    found = refinement_measures(log_probs, gold)
    assert found["nll_refined"] == pytest.approx(known, abs=0.002)
    assert found["nll_calibration"] == pytest.approx(nll(letter_log_softmax(log_probs), gold) - known, abs=0.002)


def test_questions_without_a_best_temperature_have_no_refinement():
    log_probs, _ = simulated(30)
    gold = log_probs.argmax(axis=1)
    assert np.isnan(list(refinement_measures(log_probs, gold).values())).all()
    # One wrong answer is enough for most parts, but not for the T of its own.
    gold[0] = log_probs[0].argmin()
    assert np.isnan(list(refinement_measures(log_probs, gold).values())).all()


def test_letters_without_signal_leave_all_knowledge_missing():
    rng = np.random.default_rng(0)
    found = refinement_measures(rng.normal(0, 2, (3000, 4)), rng.integers(4, size=3000))
    assert found["nll_refined"] == pytest.approx(np.log(4), abs=0.01)


def test_further_measures_hold_both_with_their_bins_and_edge():
    log_probs, gold = simulated(100)
    arguments = log_probs, gold, 1.3, (5,), "right"
    found = further_measures(*arguments)
    assert floor_measures(*arguments).items() <= found.items()
    assert refinement_measures(*arguments[:3]).items() <= found.items()
