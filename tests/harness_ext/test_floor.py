"""The floor of an ECE against sums over all outcomes, scipy's distribution, and simulated models."""

import itertools

import numpy as np
import pytest
from scipy.stats import poisson_binom

from harness_ext import floor as module
from harness_ext.calibration import classwise_gaps, conf_ece, confidence_gaps
from harness_ext.floor import count_distribution, ece_floors, mean_gap
from harness_ext.registry import ECES

RAGGED = np.array([[0.5, 0.3, 0.2], [0.45, 0.55, np.nan], [0.1, 0.3, 0.6], [0.58, 0.42, np.nan]])


def floor_of(probs, gold=None, ece="conf_ece", bins=10, edge="left", **options):
    gold = np.zeros(len(probs), dtype=int) if gold is None else np.asarray(gold)
    return ece_floors(probs, [ECES[ece](probs, gold, bins, edge)], **options)[0]


def outcomes(probs, ece, bins, edge="left"):
    """Return each possible ECE with its probability."""
    letters = [np.flatnonzero(~np.isnan(row)) for row in probs]
    for gold in itertools.product(*letters):
        chance = np.prod(probs[np.arange(len(probs)), gold])
        yield ECES[ece](probs, np.array(gold), bins, edge).ece(), chance


def simulated(rows, seed, letters=4):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(letters), rows)
    return probs, (probs.cumsum(1)[:, :-1] < rng.random((rows, 1))).sum(1)


@pytest.mark.parametrize("ece", ["conf_ece", "cw_ece"])
def test_floor_of_one_question_by_hand(ece):
    # Right with .8: a gap of .2; wrong with .2: a gap of .8. The other letter's gaps are the same.
    probs = np.array([[0.8, 0.2]])
    right, wrong = (floor_of(probs, [gold], ece) for gold in (0, 1))
    assert right.mean == wrong.mean == pytest.approx(0.32, abs=1e-12)
    assert right.high == pytest.approx(0.8)
    # All draws have an ECE of at least .2, one in five one of .8.
    assert right.p == 1
    assert wrong.p == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("edge", ["left", "right"])
@pytest.mark.parametrize(("ece", "bins"), [("conf_ece", 2), ("conf_ece", 10), ("cw_ece", 2), ("cw_ece", 10)])
def test_mean_and_p_value_are_those_of_all_outcomes(ece, bins, edge):
    eces, chances = np.array(list(outcomes(RAGGED, ece, bins, edge))).T
    assert chances.sum() == pytest.approx(1)
    for gold in ([0, 1, 2, 0], [2, 0, 0, 1]):
        found = floor_of(RAGGED, gold, ece, bins, edge)
        assert found.mean == pytest.approx(chances @ eces, abs=1e-12)
        own = ECES[ece](RAGGED, np.array(gold), bins, edge).ece()
        # Four standard errors of 1,000 draws.
        assert found.p == pytest.approx(chances[eces > own - 1e-9].sum(), abs=4 * 0.016)
        assert chances[eces < found.high - 1e-9].sum() < 0.95 + 4 * 0.007
        assert chances[eces < found.high + 1e-9].sum() > 0.95 - 4 * 0.007


def test_edges_of_bins_are_heeded():
    probs = np.array([[0.5, 0.5], [0.55, 0.45]])
    # Closed on the left the two share a bin of ten; closed on the right they do not.
    assert floor_of(probs).mean < floor_of(probs, edge="right").mean - 0.1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 31, 100, 257])
def test_numbers_of_right_answers_are_distributed_as_scipy_says(count):
    chances = np.random.default_rng(count).random(count)
    found, right = count_distribution(chances), np.arange(count + 1)
    expected = poisson_binom.pmf(right, chances)
    np.testing.assert_allclose(found[: count + 1], expected, atol=1e-14)
    np.testing.assert_allclose(found[count + 1 :], 0, atol=1e-14)
    assert len(found) == 2 ** int(np.ceil(np.log2(count))) + 1
    assert mean_gap(chances) == pytest.approx(expected @ np.abs(right - chances.sum()), rel=1e-11)


def test_mean_gap_of_two_by_hand():
    # Two right (.56): a gap of .5; one (.38): .5; none (.06): 1.5.
    assert mean_gap(np.array([0.8, 0.7])) == pytest.approx(0.56 * 0.5 + 0.38 * 0.5 + 0.06 * 1.5, abs=1e-12)


def test_draws_lie_around_the_exact_mean(monkeypatch):
    probs, gold = simulated(300, 5)
    probs[::3, 3] = np.nan
    probs /= np.nansum(probs, axis=1, keepdims=True)
    kinds = [(ece, bins) for ece in ECES for bins in (10, 14)]
    gold = np.minimum(gold, 2)
    eces = [ECES[ece](probs, gold, bins) for ece, bins in kinds]
    # The mean of ECEs that are computed whole, of answers drawn by numpy.
    drawn = np.random.default_rng(1).multinomial(1, np.nan_to_num(probs), (400, 300)).argmax(axis=2)
    for (ece, bins), found in zip(kinds, ece_floors(probs, eces), strict=True):
        again = [ECES[ece](probs, answers, bins).ece() for answers in drawn]
        assert found.mean == pytest.approx(np.mean(again), abs=5 * np.std(again) / 20)
        assert found.high == pytest.approx(np.quantile(again, 0.95), rel=0.06)


def test_calibrated_models_are_refused_one_time_in_twenty():
    found = []
    for seed in range(200):
        probs, gold = simulated(100, seed)
        eces = [confidence_gaps(probs, gold), classwise_gaps(probs, gold)]
        found.append([floor.p for floor in ece_floors(probs, eces)])
    # Binomial: of 200, 10 are expected; more than 20, or less than 2, once in 1,000 times.
    refused = (np.array(found) < 0.05).sum(axis=0)
    assert (refused >= 2).all()
    assert (refused <= 20).all()
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_a_gap_that_noise_does_not_make_has_the_least_p_value():
    probs, _ = simulated(2000, 0)
    assert floor_of(probs).p == 1 / 1001


def test_more_questions_have_fewer_draws_but_never_less_than_two_hundred(monkeypatch):
    probs, _ = simulated(2000, 0)
    monkeypatch.setattr(module, "MOST", 2000 * 500)
    assert floor_of(probs).p == 1 / 501
    monkeypatch.setattr(module, "MOST", 2000)
    assert floor_of(probs).p == 1 / 201


@pytest.mark.parametrize("size", [1, 150, 5000])
def test_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch, size):
    probs, gold = simulated(50, 1)
    expected = floor_of(probs, gold, "cw_ece")
    monkeypatch.setattr(module, "AT_ONCE", size)
    assert floor_of(probs, gold, "cw_ece") == expected


@pytest.mark.parametrize("ece", ["conf_ece", "cw_ece"])
def test_all_questions_are_drawn_where_they_are_drawn_in_blocks(monkeypatch, ece):
    probs, gold = simulated(100, 1)
    whole = floor_of(probs, gold, ece)
    monkeypatch.setattr(module, "BLOCK", 33)
    found = floor_of(probs, gold, ece)
    assert found != whole
    assert found == (whole.mean, pytest.approx(whole.high, rel=0.06), pytest.approx(whole.p, abs=0.06))


def test_eces_beside_each_other_are_those_alone():
    probs, gold = simulated(200, 2)
    eces = [confidence_gaps(probs, gold), classwise_gaps(probs, gold, 7), confidence_gaps(probs, gold, 20)]
    assert ece_floors(probs, eces) == [ece_floors(probs, [gaps])[0] for gaps in eces]


def test_floor_does_not_change_between_calls_and_falls_with_more_questions():
    probs, gold = simulated(2000, 0)
    assert floor_of(probs, gold) == floor_of(probs, gold) == floor_of(probs, gold, seed=0)
    assert floor_of(probs, gold) != floor_of(probs, gold, seed=1)
    assert floor_of(probs).mean < 0.6 * floor_of(probs[:500]).mean
    assert floor_of(probs).mean < conf_ece(probs, np.zeros(2000, dtype=int))
