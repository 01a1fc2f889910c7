import numpy as np
import pytest
from scipy.stats import binomtest

from harness_ext.calibration import classwise_gaps, conf_ece, confidence_gaps
from harness_ext.errors import ScoringError
from harness_ext.intervals import _resampling_covariance, ece_interval, paired_difference, wilson


def draw(rows, seed=0, letters=4, sharpen=1.0):
    """Probabilities and right answers drawn from them; sharpened probabilities are overconfident."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(letters), rows)
    gold = (probs.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    probs = probs**sharpen
    return probs / probs.sum(axis=1, keepdims=True), gold


def test_one_clear_bin_gives_the_interval_of_its_accuracy():
    # One bin, accuracy .5, confidence .9: the ECE's standard error is that of the mean, sqrt(.25 / 400) = .025.
    probs, gold = np.tile([0.9, 0.1], (400, 1)), np.arange(400) % 2
    found = ece_interval(confidence_gaps(probs, gold))
    assert found.estimate == pytest.approx(0.4)
    assert found.high - 0.4 == pytest.approx(1.96 * 0.025, rel=0.06)
    assert 0.4 - found.low == pytest.approx(1.96 * 0.025, rel=0.06)


def test_two_bins_with_opposite_gaps_resample_with_their_covariance():
    # 100 rows always .2 below, 100 always .3 above: within a bin nothing varies, only how many rows each bin gets,
    # so the ECE is .3 - .1 n / 200 with n binomial(200, 1/2): standard error .1 sqrt(50) / 200.
    probs = np.vstack([np.tile([0.8, 0.2], (100, 1)), np.tile([0.3, 0.7], (100, 1))])
    gold = np.array([0] * 100 + [1] * 100)
    found = ece_interval(confidence_gaps(probs, gold))
    assert found.estimate == pytest.approx(0.25)
    assert found.high - found.estimate == pytest.approx(1.96 * 0.1 * np.sqrt(50) / 200, rel=0.06)


def test_the_covariance_is_that_of_redrawing_the_questions():
    probs, gold = draw(300, sharpen=3)
    gaps = classwise_gaps(probs, gold, 5)
    rng = np.random.default_rng(1)
    again = np.array(
        [
            type(gaps)(gaps.cell[pick], gaps.gap[pick], gaps.weight).sums()
            for pick in rng.integers(300, size=(4000, 300))
        ]
    )
    # The largest variance is 24, the largest covariance of two cells 6; 4,000 draws leave 0.6 of noise.
    assert _resampling_covariance(gaps, gaps.sums()) == pytest.approx(np.cov(again.T), abs=1.2)


def test_a_calibrated_models_interval_reaches_zero_and_an_overconfident_ones_does_not():
    assert ece_interval(confidence_gaps(*draw(500))).low == 0
    assert ece_interval(confidence_gaps(*draw(500, sharpen=3))).low > 0.05


def test_the_interval_holds_its_estimate_within_zero_and_one():
    for rows in (2, 3, 10, 100):
        for gaps in (confidence_gaps, classwise_gaps):
            found = ece_interval(gaps(*draw(rows)))
            assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_four_times_the_questions_halve_the_interval():
    widths = [ece_interval(confidence_gaps(*draw(rows, sharpen=3))) for rows in (1000, 4000)]
    small, large = (interval.high - interval.low for interval in widths)
    assert large == pytest.approx(small / 2, rel=0.25)


def test_a_higher_level_is_wider_and_the_same_input_gives_the_same_interval():
    gaps = confidence_gaps(*draw(300))
    assert ece_interval(gaps, level=0.99).high > ece_interval(gaps, level=0.8).high
    assert ece_interval(gaps) == ece_interval(gaps)


def test_one_question_says_nothing():
    assert ece_interval(confidence_gaps(*draw(1)))[1:] == (0.0, 1.0)


def test_rows_that_never_vary_have_no_width():
    probs = np.tile([1.0, 0.0], (50, 1))
    assert ece_interval(confidence_gaps(probs, np.zeros(50, int))) == (0.0, 0.0, 0.0)
    assert ece_interval(confidence_gaps(probs, np.ones(50, int))) == (1.0, 1.0, 1.0)


def test_a_paired_difference_of_means_is_the_textbooks():
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    b = a + rng.normal(0.2, 0.1, size=400)
    found = paired_difference(np.mean, (a,), (b,))
    assert found.estimate == pytest.approx(np.mean(b - a))
    half = 1.96 * np.std(b - a) / 20
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=0.15 * half)


def test_a_models_difference_to_itself_is_exactly_zero():
    rows = draw(100)
    assert paired_difference(conf_ece, rows, rows) == (0.0, 0.0, 0.0)


def test_a_difference_of_eces_has_the_worse_models_sign():
    calibrated, gold = draw(400)
    sharp = draw(400, sharpen=4)[0]
    found = paired_difference(conf_ece, (calibrated, gold), (sharp, gold), draws=200)
    assert 0 < found.low < found.estimate < found.high


def test_other_numbers_of_questions_are_refused():
    with pytest.raises(ScoringError, match=r"got \[3, 4\] rows"):
        paired_difference(np.mean, (np.ones(3),), (np.ones(4),))


@pytest.mark.parametrize(("hits", "rows"), [(0, 1), (0, 5), (5, 5), (7, 10), (8, 10), (333, 1000)])
def test_the_interval_of_a_share_equals_scipys_wilson(hits, rows):
    theirs = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert wilson(hits, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_by_hand_and_at_the_ends():
    # 7 of 10: (0.7 + z^2/20 +- z sqrt(0.021 + z^2/400)) / (1 + z^2/10)
    assert wilson(7, 10) == pytest.approx((0.39678, 0.89221), abs=1e-5)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
