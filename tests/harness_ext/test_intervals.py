import numpy as np
import pytest
from scipy.stats import binomtest

from harness_ext.binning import bin_index
from harness_ext.calibration import classwise_gaps, conf_ece, confidence_gaps, top
from harness_ext.debiasing import (
    MEANS,
    TABLE,
    debias,
    debiased,
    resampling_covariance,
    standardize,
    unseen_variance,
)
from harness_ext.errors import UserError
from harness_ext.intervals import (
    basic_interval,
    ece_difference_interval,
    ece_interval,
    paired_difference,
    resampled_means,
    wilson,
)


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
    # N/2 rows always .2 below, N/2 always .3 above: within a bin nothing varies, only how many rows each bin gets,
    # so the ECE is .3 - .1 n / N with n binomial(N, 1/2): standard error .1 sqrt(N / 4) / N. With so many rows
    # the share of right ones in a bin is known to be 1.
    rows = 100_000
    probs = np.vstack([np.tile([0.8, 0.2], (rows, 1)), np.tile([0.3, 0.7], (rows, 1))])
    gold = np.array([0] * rows + [1] * rows)
    found = ece_interval(confidence_gaps(probs, gold))
    assert found.estimate == pytest.approx(0.25)
    assert found.high - found.estimate == pytest.approx(1.96 * 0.1 / np.sqrt(4 * 2 * rows), rel=0.06)


def test_the_covariance_is_that_of_redrawing_the_questions():
    probs, gold = draw(300, sharpen=3)
    gaps = classwise_gaps(probs, gold, 5)
    rng = np.random.default_rng(1)
    again = np.array(
        [gaps._replace(cell=gaps.cell[pick], gap=gaps.gap[pick]).sums() for pick in rng.integers(300, size=(4000, 300))]
    )
    # The largest variance is 24, the largest covariance of two cells 6; 4,000 draws leave 0.6 of noise.
    assert resampling_covariance(gaps, gaps.sums()) == pytest.approx(np.cov(again.T), abs=1.2)


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


@pytest.mark.parametrize("sharpen", [1, 1.3, 3])
def test_the_lower_end_is_what_noise_alone_does_not_reach(sharpen):
    # Far from calibration that is the debiased end; near it, the plain ECE less what noise adds in 4.5 % of its draws.
    gaps = confidence_gaps(*draw(400, sharpen=sharpen))
    sums = gaps.sums()
    covariance = resampling_covariance(gaps, sums) + np.diag(unseen_variance(gaps, sums))
    cells = standardize(sums, covariance, gaps.weight, 2000, 0)
    low, high = debias(cells).ends(0.95)
    raised = np.quantile(np.abs(cells.noise) @ cells.scale, 0.955)
    found = ece_interval(gaps)
    assert found == (gaps.ece(), pytest.approx(max(0, low, gaps.ece() - raised)), pytest.approx(high))
    assert found == ece_interval(gaps, 0.95, 2000, 0) != ece_interval(gaps, 0.95, 2000, 1)


def test_the_defaults_of_differences_are_two_thousand_draws_and_a_thousand_resamples_of_seed_zero():
    (first, gold), second = draw(60), draw(60, sharpen=2)[0]
    a, b = (classwise_gaps(probs, gold, 4) for probs in (first, second))
    found = ece_difference_interval(a, b)
    assert found == ece_difference_interval(a, b, 0.95, 2000, 0) != ece_difference_interval(a, b, 0.95, 2000, 1)
    rows = (first, gold), (second, gold)
    found = paired_difference(conf_ece, *rows)
    assert found == paired_difference(conf_ece, *rows, seed=0, draws=1000) != paired_difference(conf_ece, *rows, seed=1)


def test_the_basic_interval_mirrors_the_quantiles():
    # Quantiles .025 and .975 of 0 to 1,000 are 25 and 975.
    assert basic_interval(600.0, np.arange(1001.0)) == pytest.approx((600, 225, 1175))


def test_one_question_says_nothing():
    assert ece_interval(confidence_gaps(*draw(1)))[1:] == (0.0, 1.0)


def test_rows_that_never_vary_still_have_a_width():
    # 50 of 50 right do not prove an accuracy of 1: Wilson's interval goes down to .93.
    probs = np.tile([1.0, 0.0], (50, 1))
    assert ece_interval(confidence_gaps(probs, np.zeros(50, int))) == (0.0, 0.0, pytest.approx(0.03, abs=0.015))
    assert ece_interval(confidence_gaps(probs, np.ones(50, int))) == (1.0, pytest.approx(0.925, abs=0.02), 1.0)


@pytest.mark.parametrize("gaps", [confidence_gaps, classwise_gaps])
def test_twenty_right_answers_at_nine_tenths_do_not_prove_a_gap_of_one_tenth(gaps):
    # A calibrated model gets 20 of 20 right with chance .12, one whose accuracy is .83 with chance .02.
    found = ece_interval(gaps(np.tile([0.9, 0.1], (20, 1)), np.zeros(20, int)))
    assert found.estimate == pytest.approx(0.1)
    assert found.low < 0.02
    assert found.high > 0.15


@pytest.mark.parametrize("gaps", [confidence_gaps, classwise_gaps])
def test_one_question_more_or_less_than_balanced_hardly_changes_the_interval(gaps):
    ends = [ece_interval(gaps(np.full((n, 4), 0.25), np.arange(n) % 4)).high for n in (2000, 2001)]
    # One standard error of a letter's share is .0097.
    assert ends[0] > 0.005
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


def test_the_table_of_the_debiased_absolute_value_is_that_of_normal_noise():
    noise = np.random.default_rng(0).standard_normal(200_000)
    for mean in (0.0, 1.0, 2.0, 5.0):
        values = debiased(mean + noise)
        near = np.abs(MEANS - mean) <= 1 + 1e-9
        place = int(np.argmin(np.abs(MEANS - mean)))
        least, most, bias, inflation = (column[place] for column in TABLE)
        assert bias == pytest.approx(values.mean() - mean, abs=0.01)
        assert (least, most) == (TABLE[2][near].min(), TABLE[2][near].max())
        largest = max(debiased(other + noise[:50_000]).std() for other in MEANS[near])
        assert inflation * values.std() == pytest.approx(largest, rel=0.02)


@pytest.mark.parametrize("cells", [1, 3, 30])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1.5, 3.0])
def test_debiased_ends_cover_a_sum_of_absolute_means_wherever_they_lie(cells, mean):
    rng = np.random.default_rng(cells)
    ends = [
        debias(standardize(mean + rng.standard_normal(cells), np.eye(cells), np.ones(cells), 200, 0)).ends(0.95)
        for _ in range(400)
    ]
    assert np.mean([low <= cells * mean <= high for low, high in ends]) >= 0.93


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


def true_ece(gaps, sharpen):
    """The population's error: labels replaced by their chances, 200,000 questions."""
    chance = draw(200_000, seed=99)[0]
    shown = chance**sharpen / (chance**sharpen).sum(axis=1, keepdims=True)
    if gaps is confidence_gaps:
        confidence, predicted = top(shown)
        gap = chance[np.arange(len(chance)), predicted] - confidence
        return np.abs(np.bincount(bin_index(confidence, 10), gap, 10)).sum() / len(chance)
    sums = [np.abs(np.bincount(bin_index(p, 10), c - p, 10)).sum() for p, c in zip(shown.T, chance.T, strict=True)]
    return np.mean(sums) / len(chance)


@pytest.mark.parametrize("sharpen", [1 / 0.8, 1 / 1.25])
@pytest.mark.parametrize("gaps", [confidence_gaps, classwise_gaps])
def test_a_paired_interval_covers_the_difference_of_a_calibrated_and_a_miscalibrated_model(gaps, sharpen):
    true, covered, runs = true_ece(gaps, sharpen), 0, 60
    for seed in range(runs):
        (calibrated, gold), other = draw(500, seed), draw(500, seed, sharpen=sharpen)[0]
        found = ece_difference_interval(gaps(calibrated, gold), gaps(other, gold), draws=200)
        covered += found.low <= true <= found.high
    assert covered / runs >= 0.93


@pytest.mark.parametrize(("gaps", "temperature"), [(confidence_gaps, 1.278), (classwise_gaps, 1.274)])
def test_an_overconfident_and_an_underconfident_model_of_equal_ece_are_seldom_told_apart(gaps, temperature):
    assert true_ece(gaps, 1 / temperature) == pytest.approx(true_ece(gaps, 1 / 0.8), abs=2e-4)
    apart, runs = 0, 60
    for seed in range(runs):
        (over, gold), under = draw(500, seed, sharpen=1 / 0.8), draw(500, seed, sharpen=1 / temperature)[0]
        found = ece_difference_interval(gaps(over, gold), gaps(under, gold), draws=200)
        apart += found.low > 0 or found.high < 0
    assert apart / runs <= 0.07


def test_a_clear_difference_of_eces_is_found_in_both_orders():
    (calibrated, gold), sharp = draw(500), draw(500, sharpen=4)[0]
    a, b = (confidence_gaps(probs, gold) for probs in (calibrated, sharp))
    forth, back = ece_difference_interval(a, b), ece_difference_interval(b, a)
    assert 0.05 < forth.low < forth.estimate < forth.high < 0.4
    assert back == (-forth.estimate, -forth.high, -forth.low)


@pytest.mark.parametrize("gaps", [confidence_gaps, classwise_gaps])
def test_a_model_has_no_ece_difference_to_itself_and_little_to_almost_itself(gaps):
    (probs, gold), almost, other = draw(500), draw(500, sharpen=1.002)[0], draw(500, sharpen=1.25)[0]
    own = gaps(probs, gold)
    assert ece_difference_interval(own, own) == (0.0, 0.0, 0.0)
    near, far = (ece_difference_interval(own, gaps(each, gold)) for each in (almost, other))
    assert 0 < near.high - near.low < (far.high - far.low) / 4


def test_models_wrong_equally_often_on_other_questions_have_an_ece_difference_with_a_width():
    # Both say .9 always; one errs on the first 20 questions, the other on the last 20: all gap sums are equal.
    gold = np.repeat([1, 0, 2], [20, 160, 20])
    sides = [np.full((200, 3), 0.05), np.full((200, 3), 0.05)]
    sides[0][:, 0] = sides[1][:, 0] = 0.9
    sides[0][gold == 2] = [0.05, 0.05, 0.9]
    sides[1][gold == 1] = [0.05, 0.9, 0.05]
    found = ece_difference_interval(*(confidence_gaps(probs, gold) for probs in sides))
    assert found.estimate == pytest.approx(0, abs=1e-12)
    # Forty discordant questions: the accuracies' difference has a standard error of sqrt(40) / 200 = .03.
    assert -0.1 < found.low < -0.03
    assert 0.03 < found.high < 0.1


def test_an_ece_difference_of_one_question_says_nothing():
    gaps = confidence_gaps(*draw(1))
    assert ece_difference_interval(gaps, gaps)[1:] == (-1.0, 1.0)


def test_an_ece_difference_of_other_questions_or_bins_is_refused():
    gaps = confidence_gaps(*draw(20))
    for other in (confidence_gaps(*draw(21)), confidence_gaps(*draw(20), 14)):
        with pytest.raises(UserError, match="same questions and bins on both sides, got 20 and"):
            ece_difference_interval(gaps, other)


def test_other_numbers_of_questions_are_refused():
    with pytest.raises(UserError, match=r"got \[3, 4\] rows"):
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
    assert wilson(11, 11)[1] == 1.0  # without its bound it is rounded to the next number above


def test_two_questions_already_say_something():
    gaps = confidence_gaps(np.array([[0.99, 0.01], [0.98, 0.02]]), np.array([0, 0]))
    found = ece_interval(gaps)
    assert 0 == found.low < found.estimate == pytest.approx(0.015)
    assert found.high < 0.9
    low, high = ece_difference_interval(gaps, gaps)[1:]
    assert -1 < low <= 0 <= high < 1


def test_twenty_right_answers_of_two_models_do_not_prove_the_difference_of_their_eces():
    gold = np.zeros(20, int)
    sure, unsure = (confidence_gaps(np.tile([p, 1 - p], (20, 1)), gold) for p in (0.9, 0.6))
    found = ece_difference_interval(sure, unsure)
    assert found.estimate == pytest.approx(0.3)
    assert found.low < 0.25


@pytest.mark.parametrize("draws", [1, 16, 17, 35])
def test_means_of_all_columns_are_of_the_same_resamples(draws):
    values = np.random.default_rng(1).normal(size=(9, 3))
    rng = np.random.default_rng(7)
    one_by_one = [values[rng.integers(9, size=9)].mean(axis=0) for _ in range(draws)]
    assert resampled_means(values, draws, seed=7) == pytest.approx(np.array(one_by_one))
