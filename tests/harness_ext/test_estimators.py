import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import norm

from harness_ext.errors import UserError
from harness_ext.estimators import (
    accuracy_at_coverage,
    auroc,
    brier_parts,
    debiased_cw_ece,
    debiased_ece,
    equal_mass_ece,
    maximum_calibration_error,
    smooth_ece,
    smooth_ece_at,
)

CONFIDENCE = np.array([0.55, 0.6, 0.8, 0.9])
CORRECT = np.array([False, True, True, True])


def draw_answers(rows, seed=0, gap=0.0):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1 - max(gap, 0), rows)
    return confidence, rng.random(rows) < confidence + gap


def test_equal_mass_ece_of_two_bins_by_hand():
    # Two lowest: accuracy .5, confidence .575; two highest: accuracy 1, confidence .85.
    assert equal_mass_ece(CONFIDENCE, CORRECT, 2) == pytest.approx(0.5 * 0.075 + 0.5 * 0.15)


def test_debiased_ece_subtracts_the_bins_variance():
    # First bin's squared gap .005625 less .25 / 1; second's .0225 less 0: below zero, so 0.
    assert debiased_ece(CONFIDENCE, CORRECT, 2) == 0
    assert debiased_ece(CONFIDENCE, np.ones(4, bool), 2) == pytest.approx(np.sqrt((0.425**2 + 0.15**2) / 2))


def test_debiased_cw_ece_is_the_root_mean_square_of_the_letters_by_hand():
    # A is always right with .9, .8 | .2, .1, and B never with .1, .2 | .8, .9: gaps of .15 and .85, without variance.
    probs = np.array([[0.9, 0.1, np.nan], [0.8, 0.2, np.nan], [0.2, 0.8, np.nan], [0.1, 0.9, np.nan]])
    gap = np.sqrt((0.85**2 + 0.15**2) / 2)
    assert debiased_cw_ece(probs, np.zeros(4, int), 2) == pytest.approx(gap)
    # The letter that only two have weighs as much as the others, over its own questions.
    probs[:2] = [[0.8, 0.1, 0.1], [0.7, 0.1, 0.2]]
    letters = [
        debiased_ece(probs[:, 0], np.ones(4, bool), 2),
        debiased_ece(probs[:, 1], np.zeros(4, bool), 2),
        debiased_ece(probs[:2, 2], np.zeros(2, bool), 2),
    ]
    assert debiased_cw_ece(probs, np.zeros(4, int), 2) == pytest.approx(np.sqrt(np.mean(np.square(letters))))
    assert min(letters[:2]) > 0


def test_a_letter_that_no_question_has_does_not_count():
    probs, gold = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]]), np.ones(4, int)
    wider = np.column_stack([probs, np.full(4, np.nan)])
    assert debiased_cw_ece(wider, gold, 2) == debiased_cw_ece(probs, gold, 2) > 0


def test_debiasing_at_least_halves_the_ece_of_a_calibrated_model():
    plain = np.mean([equal_mass_ece(*draw_answers(300, seed)) for seed in range(40)])
    debiased = np.mean([debiased_ece(*draw_answers(300, seed)) for seed in range(40)])
    assert plain > 0.05
    assert debiased < plain / 2


def test_debiased_ece_finds_a_constant_gap():
    assert debiased_ece(*draw_answers(50_000, gap=0.1)) == pytest.approx(0.1, abs=0.01)


def test_maximum_calibration_error_is_the_worst_bins_gap():
    assert maximum_calibration_error(np.array([0.65, 0.61, 0.95]), np.array([1, 0, 0])) == pytest.approx(0.95)


def test_smooth_ece_of_a_constant_gap_is_the_gap():
    confidence = np.full(1000, 0.5)
    correct = np.arange(1000) < 800
    assert smooth_ece(confidence, correct) == pytest.approx(0.3, abs=0.005)


def test_smooth_ece_of_positive_gaps_is_their_mean_at_any_width():
    # The reflected kernel loses no mass: with all gaps positive the integral is their mean at any width.
    confidence = np.array([0.0, 0.2, 0.7, 0.99])
    for sigma in (0.02, 0.3, 2.0):
        for gaps in (1 - confidence, confidence):
            found = smooth_ece_at(confidence, gaps == 1 - confidence, sigma)
            assert found == pytest.approx(gaps.mean(), abs=1e-12)


def test_a_wrong_certain_answer_is_smoothed_by_a_gaussian_and_its_reflection():
    # Half of the gap of -1 at 1.0 is reflected; a gap of +1 at 0.5 takes away what meets it.
    confidence, correct, sigma = np.array([1.0, 0.5]), np.array([False, True]), 0.2
    points = np.linspace(0, 1, 2001)
    density = 0.5 * norm.pdf(points, [[0.5], [-0.5], [1.5]], sigma).sum(axis=0) - 2 * norm.pdf(points, 1, sigma)
    expected = trapezoid(np.abs(density), points) / 2
    assert smooth_ece_at(confidence, correct, sigma) == pytest.approx(expected, abs=1e-5)


def test_smooth_ece_of_a_certain_model_is_one_if_wrong_and_zero_if_right():
    assert smooth_ece(np.ones(10), np.zeros(10, bool)) == pytest.approx(1, abs=1e-6)
    assert smooth_ece(np.ones(10), np.ones(10, bool)) == pytest.approx(0, abs=1e-3)


def test_brier_parts_by_hand():
    # Two bins of two: [.5, 1] wrong/right .6 .8; [0, .5): .2 .4 wrong.
    parts = brier_parts(np.array([0.6, 0.8, 0.2, 0.4]), np.array([0, 1, 0, 0]), 2)
    assert parts.score == pytest.approx((0.36 + 0.04 + 0.04 + 0.16) / 4)
    assert parts.reliability == pytest.approx((2 * 0.2**2 + 2 * 0.3**2) / 4)
    assert parts.resolution == pytest.approx((2 * 0.25**2 + 2 * 0.25**2) / 4)
    assert parts.uncertainty == pytest.approx(0.1875)
    assert parts.reliability - parts.resolution + parts.uncertainty + parts.within == pytest.approx(parts.score)


def test_brier_parts_sum_to_the_score():
    parts = brier_parts(*draw_answers(777, seed=3))
    assert parts.reliability - parts.resolution + parts.uncertainty + parts.within == pytest.approx(parts.score)


def test_auroc_by_hand_with_a_tie():
    # Pairs right over wrong: .9 > .5, .9 > .6, .6 > .5, and .6 = .6 half.
    assert auroc(np.array([0.9, 0.6, 0.6, 0.5]), np.array([1, 1, 0, 0], bool)) == pytest.approx(3.5 / 4)


@pytest.mark.filterwarnings("error")
def test_auroc_of_answers_that_are_all_right_or_all_wrong_is_nan_without_a_warning():
    assert np.isnan(auroc(CONFIDENCE, np.ones(4, bool)))
    assert np.isnan(auroc(CONFIDENCE, np.zeros(4, bool)))


def test_accuracy_at_coverage_by_hand():
    assert accuracy_at_coverage(CONFIDENCE, CORRECT, 0.75) == 1.0
    assert accuracy_at_coverage(CONFIDENCE, CORRECT, 1.0) == 0.75
    assert accuracy_at_coverage(CONFIDENCE, CORRECT, 0.01) == 1.0  # at least one question


def test_accuracy_at_coverage_averages_ties_at_the_threshold():
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, True, False, False])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        found = [accuracy_at_coverage(confidence[order], correct[order], share) for share in (0.5, 0.75)]
        assert found == pytest.approx([(1 + 1 / 3) / 2, (1 + 2 / 3) / 3])


@pytest.mark.parametrize("coverage", [0, -0.1, 1.1, float("nan")])
def test_coverage_out_of_range_is_refused(coverage):
    with pytest.raises(UserError, match="coverage is"):
        accuracy_at_coverage(CONFIDENCE, CORRECT, coverage)


def test_ten_bins_are_the_default():
    confidence, correct = draw_answers(200, seed=1)
    for measure in (equal_mass_ece, debiased_ece, maximum_calibration_error, brier_parts):
        assert measure(confidence, correct) == measure(confidence, correct, 10) != measure(confidence, correct, 11)
    probs, gold = np.column_stack([confidence, 1 - confidence]), np.where(correct, 0, 1)
    assert debiased_cw_ece(probs, gold) == debiased_cw_ece(probs, gold, 10) != debiased_cw_ece(probs, gold, 11)


def test_bins_of_one_question_have_no_variance_and_are_left_out():
    assert debiased_ece(np.array([0.2, 0.5, 0.9]), np.array([1, 1, 1], bool), 3) == 0
    # Five in three bins: two, one and two.
    found = debiased_ece(np.array([0.1, 0.2, 0.7, 0.8, 0.9]), np.ones(5, bool), 3)
    assert found == pytest.approx(np.sqrt((2 * 0.85**2 + 2 * 0.15**2) / 5))
    confidence, correct = np.array([0.1, 0.2, 0.7, 0.8, 0.9]), np.array([0, 1, 1, 1, 0], bool)
    first = (0.5 - 0.15) ** 2 - 0.25 / 1
    second = (2 / 3 - 0.8) ** 2 - (2 / 9) / 2
    assert first + second < 0
    assert debiased_ece(confidence, correct, 2) == 0
    first, second = (1 - 0.15) ** 2, (2 / 3 - 0.8) ** 2 - (2 / 9) / 2
    found = debiased_ece(confidence, np.array([1, 1, 1, 1, 0], bool), 2)
    assert found == pytest.approx(np.sqrt((2 * first + 3 * second) / 5))


def test_accuracy_at_coverage_rounds_the_number_of_answered_questions():
    confidence, correct = np.arange(1, 11) / 10, np.array([0] * 7 + [1, 0, 1], bool)
    # 10 % is one question, 16 % two, 26 % three.
    found = [accuracy_at_coverage(confidence, correct, share) for share in (0.1, 0.16, 0.26)]
    assert found == pytest.approx([1, 1 / 2, 2 / 3])


def test_smooth_ece_equals_its_kernels_width():
    confidence, correct = draw_answers(300, seed=2, gap=0.2)
    found = smooth_ece(confidence, correct)
    assert smooth_ece_at(confidence, correct, found) == pytest.approx(found, abs=2e-3)
    assert found == pytest.approx(0.2, abs=0.05)


def test_smooth_ece_of_gaps_that_cancel_when_smoothed_lies_where_width_and_error_meet():
    confidence, correct = np.repeat([0.35, 0.65], 50), np.repeat([True, False], 50)
    found = smooth_ece(confidence, correct)
    assert smooth_ece_at(confidence, correct, 1.0) < 0.01 < 0.1 < found < 0.65
    assert smooth_ece_at(confidence, correct, found) == pytest.approx(found, abs=3e-3)
