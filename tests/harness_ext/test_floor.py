import numpy as np
import pytest

from harness_ext.calibration import conf_ece
from harness_ext.floor import ece_floor

TWO = np.array([[0.8, 0.2], [0.2, 0.8]])


@pytest.mark.parametrize("ece", ["conf_ece", "cw_ece"])
def test_floor_of_one_question_by_hand(ece):
    # Right with .8: a gap of .2; wrong with .2: a gap of .8. The other letter's gaps are the same.
    floor = ece_floor(np.array([[0.8, 0.2]]), ece, draws=20_000)
    assert floor.mean == pytest.approx(0.8 * 0.2 + 0.2 * 0.8, abs=0.01)
    assert (floor.low, floor.high) == pytest.approx((0.2, 0.8))


def test_conf_ece_floor_of_two_questions_in_one_bin_by_hand():
    # Two right (.64): a gap of .2; one (.32): .3; none (.04): .8.
    floor = ece_floor(TWO, draws=20_000)
    assert floor.mean == pytest.approx(0.64 * 0.2 + 0.32 * 0.3 + 0.04 * 0.8, abs=0.01)


def test_cw_ece_floor_of_two_questions_by_hand():
    # Each letter has one question in its bin at .8 and one in that at .2: gaps of .2 if right, .8 if wrong.
    assert ece_floor(TWO, "cw_ece", draws=20_000).mean == pytest.approx(0.32, abs=0.01)


@pytest.mark.parametrize(("ece", "bins"), [("conf_ece", 10), ("conf_ece", 14), ("cw_ece", 10)])
def test_floor_is_the_mean_ece_of_answers_drawn_with_the_models_probabilities(ece, bins):
    from harness_ext.registry import ECES

    rng = np.random.default_rng(5)
    probs = rng.dirichlet(np.ones(4), 300)
    probs[::3, 3] = np.nan
    probs /= np.nansum(probs, axis=1, keepdims=True)
    drawn = rng.multinomial(1, np.nan_to_num(probs), (200, 300)).argmax(axis=2)
    eces = [ECES[ece](probs, answers, bins).ece() for answers in drawn]
    assert ece_floor(probs, ece, bins).mean == pytest.approx(np.mean(eces), rel=0.06)


@pytest.mark.parametrize("ece", ["conf_ece", "cw_ece"])
def test_rounded_probabilities_have_the_floor_of_exact_ones(ece):
    probs = np.random.default_rng(2).dirichlet(np.ones(3), 300)
    assert ece_floor(0.999 * probs, ece).mean == pytest.approx(ece_floor(probs, ece).mean, rel=0.02)


def test_floor_does_not_change_between_calls_and_falls_with_more_questions():
    probs = np.random.default_rng(0).dirichlet(np.ones(4), 2000)
    assert ece_floor(probs) == ece_floor(probs)
    assert ece_floor(probs).mean < 0.6 * ece_floor(probs[:500]).mean
    assert ece_floor(probs).mean < conf_ece(probs, np.zeros(2000, dtype=int))


def test_defaults_are_conf_ece_with_ten_bins_and_two_hundred_draws_of_seed_zero():
    probs = np.random.default_rng(1).dirichlet(np.ones(3), 50)
    found = ece_floor(probs)
    assert found == ece_floor(probs, "conf_ece", 10, 200, 0)
    assert found != ece_floor(probs, seed=1)
