import dataclasses

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from calibtune.tuning import temperature
from calibtune.tuning.temperature import (
    Temperature,
    check_unseen,
    cross_fitted,
    fit_temperature,
    unseen_interval,
)
from harness_ext.calibration import accuracy, conf_ece, letter_log_softmax, nll
from harness_ext.errors import UserError


@pytest.fixture
def few_resamples(monkeypatch):
    """Let the ECE objective's interval, which takes most of its time, rest on few resamples."""
    monkeypatch.setattr(temperature, "RESAMPLES", 10)


def simulated(rows, temperature, seed=0, letters=4):
    """Letters whose right answer is drawn at T = 1, then sharpened: the T that mends them is known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, letters))
    probs = np.exp(letter_log_softmax(logits))
    gold = (probs.cumsum(1) < rng.random((rows, 1))).sum(1)
    return letter_log_softmax(logits * temperature), gold


class Logits(ClassifierMixin, BaseEstimator):
    """A classifier that gives back its input as decision values."""

    def __init__(self, letters=4):
        self.letters = letters
        self.classes_ = np.arange(letters)
        self.n_features_in_ = letters

    def fit(self, x, y):
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_recovered_and_its_interval_holds_it(true):
    found = fit_temperature(*simulated(5000, true))
    assert found.value == pytest.approx(true, rel=0.05)
    low, high = found.interval
    assert low <= true <= high
    assert high - low < 0.2 * true
    assert found.warnings == ()


def test_recovered_to_two_per_cent_on_average():
    found = [fit_temperature(*simulated(5000, 2.5, seed)).value for seed in range(10)]
    assert np.mean(np.abs(np.array(found) / 2.5 - 1)) < 0.02


def test_equals_scikit_learns():
    loglikelihoods, gold = simulated(5000, 2.5)
    model = CalibratedClassifierCV(FrozenEstimator(Logits()), method="temperature").fit(loglikelihoods, gold)
    theirs = 1 / model.calibrated_classifiers_[0].calibrators[0].beta_
    assert fit_temperature(loglikelihoods, gold).value == pytest.approx(theirs, rel=1e-3)


def test_accuracy_stays_and_nll_is_not_worse():
    loglikelihoods, gold = simulated(800, 3.0)
    t = fit_temperature(loglikelihoods, gold).value
    before, after = letter_log_softmax(loglikelihoods), letter_log_softmax(loglikelihoods, t)
    assert accuracy(np.exp(before), gold) == accuracy(np.exp(after), gold)
    assert nll(after, gold) < nll(before, gold)


def test_the_intervals_cover():
    intervals = [fit_temperature(*simulated(300, 2.0, seed)).interval for seed in range(200)]
    covered = [low <= 2.0 <= high for low, high in intervals]
    # Binomial: 200 draws at 95 % fall below 180 once in 1,000 times.
    assert sum(covered) >= 180


def test_the_ece_objective_finds_a_lower_ece_than_the_nll_one(few_resamples):
    loglikelihoods, gold = simulated(1000, 2.5)
    by_ece, by_nll = (fit_temperature(loglikelihoods, gold, objective) for objective in ("ece", "nll"))
    eces = [conf_ece(np.exp(letter_log_softmax(loglikelihoods, f.value)), gold) for f in (by_ece, by_nll)]
    assert eces[0] <= eces[1]
    assert by_ece.interval[0] <= by_ece.value <= by_ece.interval[1]


def test_ragged_letters():
    loglikelihoods, gold = simulated(3000, 2.0, letters=3)
    padded = np.column_stack([loglikelihoods, np.full(3000, np.nan)])
    assert fit_temperature(padded, gold).value == pytest.approx(fit_temperature(loglikelihoods, gold).value)


def test_letters_without_signal_end_at_the_upper_bound_and_it_is_said():
    rng = np.random.default_rng(0)
    found = fit_temperature(letter_log_softmax(rng.normal(0, 3, (2000, 4))), rng.integers(4, size=2000))
    assert "bound" in found.warnings[0] or "no signal" in found.warnings[0]


def test_letters_that_are_always_right_end_at_the_lower_bound_and_it_is_said():
    loglikelihoods, _ = simulated(200, 1.0)
    found = fit_temperature(loglikelihoods, loglikelihoods.argmax(1))
    assert found.value < 0.02
    assert "right in all 200 questions" in found.warnings[0]


def test_cross_fitted_questions_are_scaled_by_the_temperature_of_others():
    rng = np.random.default_rng(0)
    log_probs = rng.normal(size=(60, 4)) * 3
    labels = rng.integers(4, size=60)
    scaled = cross_fitted(log_probs, labels, seed=1)
    fold = np.random.default_rng(1).permutation(60) % 5
    for part in range(5):
        t = fit_temperature(log_probs[fold != part], labels[fold != part]).value
        expected = letter_log_softmax(log_probs[fold == part], t)
        np.testing.assert_allclose(scaled[fold == part], expected, atol=1e-5)


def test_cross_fitted_numbers_do_not_flatter_letters_without_signal():
    rng = np.random.default_rng(0)
    log_probs, labels = rng.normal(size=(2000, 4)), rng.integers(4, size=2000)
    fitted = fit_temperature(log_probs[:20], labels[:20])
    own = nll(letter_log_softmax(log_probs[:20], fitted.value), labels[:20])
    others = nll(letter_log_softmax(log_probs[20:], fitted.value), labels[20:])
    honest = nll(cross_fitted(log_probs[:20], labels[:20]), labels[:20])
    assert own <= np.log(4) + 1e-6
    assert honest > own
    assert others > own


@pytest.mark.parametrize("objective", ["nll", "ece"])
def test_one_question_is_left_as_it_is(objective):
    log_probs = [[-3.0, -4.0]]
    assert cross_fitted(log_probs, [0], objective)[0].tolist() == letter_log_softmax(log_probs)[0].tolist()


def test_a_temperature_is_applied_recorded_and_never_changed():
    fitted = Temperature(2.0, (1.5, 2.5), "nll", 100, ("careful",))
    np.testing.assert_allclose(np.exp(fitted.apply([[2 * np.log(3), 0.0]])), [[0.75, 0.25]])
    assert fitted.record() == {
        "temperature": 2.0,
        "low": 1.5,
        "high": 2.5,
        "objective": "nll",
        "questions": 100,
        "warnings": ["careful"],
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted.value = 3.0


def test_the_interval_ends_where_twice_the_log_likelihood_fell_by_the_quantile_of_chi_squared():
    log_probs, gold = simulated(300, 2.0)
    fitted = fit_temperature(log_probs, gold)
    assert fitted.questions == 300

    def fallen(t):
        rise = nll(letter_log_softmax(log_probs, t), gold) - nll(letter_log_softmax(log_probs, fitted.value), gold)
        return 2 * 300 * rise

    low, high = fitted.interval
    assert low < fitted.value < high
    assert [fallen(low), fallen(high)] == pytest.approx([3.841459, 3.841459], abs=1e-3)


def test_an_interval_that_reaches_a_bound_ends_there():
    log_probs = np.log([[0.6, 0.4]] * 4)
    low, high = fit_temperature(log_probs, [0, 0, 0, 1]).interval
    assert 0.01 < low < 1
    assert high == 100.0
    assert fit_temperature(log_probs, [0] * 4).interval[0] == pytest.approx(0.01)


def test_the_ece_objective_beats_its_grid_with_ten_bins_and_seed_zero_by_default(few_resamples):
    log_probs, gold = simulated(80, 1.7, seed=4)
    fitted = fit_temperature(log_probs, gold, "ece")
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 121))
    eces = [conf_ece(np.exp(letter_log_softmax(log_probs, t)), gold, 10) for t in grid]
    assert conf_ece(np.exp(fitted.apply(log_probs)), gold, 10) < min(eces)
    assert fitted == fit_temperature(log_probs, gold, "ece", bins=10, seed=0)
    assert fitted != fit_temperature(log_probs, gold, "ece", bins=10, seed=1)
    assert fitted.interval[0] < fitted.value < fitted.interval[1]


@pytest.mark.parametrize("right", range(51, 90, 6))
def test_the_t_of_the_least_ece_is_found_to_seven_ten_thousandths(few_resamples, right):
    # One confidence has one bin, whose gap vanishes where the scaled confidence is the accuracy.
    log_probs, gold = halves(right, 100 - right, 0.9)
    exact = np.log(0.9 / 0.1) / np.log(right / (100 - right))
    assert fit_temperature(log_probs, gold, "ece").value == pytest.approx(exact, rel=7e-4)


@pytest.mark.parametrize(("right", "t"), [(10, 0.01), (5, 100.0)])
def test_the_t_of_the_least_ece_can_be_either_bound(few_resamples, right, t):
    assert fit_temperature(*halves(right, 10 - right), "ece").value == pytest.approx(t, rel=1e-9)


@pytest.mark.slow
def test_the_ece_objectives_interval_narrows_with_the_questions():
    def width(rows):
        low, high = np.log(fit_temperature(*simulated(rows, 1.7, seed=5), "ece").interval)
        return high - low

    assert 0 < width(500) < width(30) < np.log(1e4)


@pytest.mark.parametrize("objective", ["nll", "ece"])
def test_two_questions_are_each_scaled_by_the_other(few_resamples, objective):
    log_probs = np.log([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    scaled = cross_fitted(log_probs, [0, 1], objective)
    for number in range(2):
        other = fit_temperature(log_probs[[1 - number]], [1 - number], objective).value
        np.testing.assert_allclose(scaled[number], letter_log_softmax(log_probs[[number]], other)[0], atol=1e-4)


def test_cross_fitting_splits_by_seed_zero_into_ten_bins_by_default():
    log_probs, gold = simulated(40, 2.0)
    for objective in ("nll", "ece"):
        default = cross_fitted(log_probs, gold, objective)
        np.testing.assert_array_equal(default, cross_fitted(log_probs, gold, objective, 10, 0))
        assert not np.array_equal(default, cross_fitted(log_probs, gold, objective, 10, 1))
    assert not np.array_equal(cross_fitted(log_probs, gold, "ece"), cross_fitted(log_probs, gold, "ece", 3))


def halves(right, wrong, confidence=0.7):
    """Questions of two letters, of which the first always has this confidence."""
    log_probs = np.log([[confidence, 1 - confidence]] * (right + wrong))
    return log_probs, np.array([0] * right + [1] * wrong)


@pytest.mark.parametrize(
    ("right", "wrong", "remark"),
    [
        (60, 40, ""),  # twice the log-likelihood ratio is 4.03, the quantile 3.84
        (59, 41, "no signal"),  # 3.26
        (50, 50, "says nothing"),
        (0, 4, "(0 of 4 answers are right, by chance it were 2)"),  # a mean 2 standard errors below 0
        (0, 3, "says nothing"),  # 1.73
        (4, 0, "right in all 4 questions"),
    ],
)
def test_what_t_means_is_remarked(right, wrong, remark):
    remarks = fit_temperature(*halves(right, wrong)).warnings
    assert len(remarks) == bool(remark)
    assert remark in "".join(remarks)


@pytest.mark.parametrize(("odds", "t"), [(99, 0.02), (1.5, 50.0)])
def test_a_t_near_a_bound_is_not_remarked(odds, t):
    # Values need not sum to 1: their difference is the log of the odds times T.
    right = round(100 * odds / (1 + odds))
    fitted = fit_temperature([[t * np.log(odds), 0.0]] * 100, [0] * right + [1] * (100 - right))
    assert fitted.value == pytest.approx(t, rel=1e-3)
    assert fitted.warnings == ()


def test_a_lower_t_than_the_range_has_is_remarked():
    log_probs, gold = halves(99, 1, 0.5001)
    (remark,) = fit_temperature(log_probs, gold).warnings
    assert "T = 0.01 lies at a bound of its range [0.01, 100]: these questions ask for a lower one" in remark


def test_a_tie_for_first_place_that_holds_the_right_letter_is_remarked():
    (remark,) = fit_temperature(np.log([[0.4, 0.4, 0.2], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]]), [1, 0, 2]).warnings
    assert "tied for first place in 1 of 3 questions" in remark


def test_an_unknown_objective_is_quoted():
    with pytest.raises(UserError, match="objective is 'brier'; give 'nll' or 'ece'"):
        fit_temperature(np.log([[0.4, 0.6]]), [0], "brier")


@pytest.mark.parametrize("seed", range(4))
def test_no_probabilities_of_unseen_letters_have_another_best_t(seed):
    rng = np.random.default_rng(seed)
    logs = np.log(rng.dirichlet([0.6] * 5, 120))[:, :4] * 1.5
    gold = np.where(rng.random(120) < 0.7, logs.argmax(axis=1), rng.integers(0, 4, 120))
    unseen = logs < np.sort(logs, axis=1)[:, [1]]
    unseen[np.arange(120), gold] = False
    bounds = np.where(unseen, np.minimum(logs, -3.0), logs)
    fitted = fit_temperature(bounds, gold)
    low, high = unseen_interval(fitted, bounds, unseen, gold, 10)
    assert low <= fitted.value <= high
    for share in (rng.random(bounds.shape), rng.integers(0, 2, bounds.shape), rng.random(bounds.shape) ** 9):
        with np.errstate(divide="ignore"):
            some = bounds + np.where(unseen, np.log(np.maximum(share, 1e-80)), 0.0)
        assert low * (1 - 1e-4) <= fit_temperature(some, gold).value <= high * (1 + 1e-4)


def test_faint_unseen_letters_leave_t_as_it_is_and_unseen_right_ones_leave_it_open():
    logs = np.log(np.array([[0.7, 0.2, 1e-14]] * 40))
    unseen = np.array([[False, False, True]] * 40)
    gold = np.array([0] * 26 + [1] * 14)
    fitted = fit_temperature(logs, gold)
    low, high = unseen_interval(fitted, logs, unseen, gold, 10)
    assert (low, high) == pytest.approx((fitted.value, fitted.value), rel=0.01)
    assert "in 40 of 40 questions a letter lies beyond" in check_unseen(fitted, logs, unseen, gold, 10).warnings[-1]
    gold[0] = 2
    with pytest.raises(UserError, match=r"in 1 the right one, which leaves T between .* or give --objective ece"):
        check_unseen(fit_temperature(logs, gold), logs, unseen, gold, 10)
    check_unseen(fit_temperature(logs, gold, "ece"), logs, unseen, gold, 10)


def with_ties(ties):
    """Questions of 70 % right answers, and ones whose wrong letter is unseen and at most as likely as the right one."""
    log_probs, gold = halves(70, 30, 0.9)
    log_probs = np.vstack([log_probs, np.log([[0.4, 0.4]] * ties)])
    unseen = np.zeros(log_probs.shape, dtype=bool)
    unseen[100:, 1] = True
    return log_probs, unseen, np.append(gold, np.zeros(ties, dtype=int))


def its_temperature(objective):
    return Temperature(np.log(0.9 / 0.1) / np.log(0.7 / 0.3), (0.01, 100.0), objective, 100, ())


@pytest.mark.parametrize("ties", [2, 3])
def test_the_nll_leaves_open_where_its_rise_is_what_unseen_letters_can_add(ties):
    log_probs, unseen, gold = with_ties(ties)
    fitted = its_temperature("nll")
    low, high = unseen_interval(fitted, log_probs, unseen, gold, 10)
    assert low < fitted.value < high
    losses = [100 * nll(letter_log_softmax(log_probs[:100], t), gold[:100]) for t in (fitted.value, low, high)]
    # Each tie adds an NLL between 0 and log 2.
    assert [loss - losses[0] for loss in losses[1:]] == pytest.approx([ties * np.log(2)] * 2, abs=1e-4)


def test_the_ece_leaves_open_the_grids_ts_whose_gap_is_what_unseen_letters_can_make():
    low, high = unseen_interval(its_temperature("ece"), *with_ties(4), 10)
    # A tie's gap lies between 0 - 1 and 1 - 1/2. Of 104 ECE is at most 4 at the best T. Where the others' confidence
    # is below their accuracy by a sum of s, it is at least s - 4, where it is above, at least s - 2.
    bounds = [np.log(0.9 / 0.1) / np.log(c / (1 - c)) for c in (0.76, 0.62)]
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 121))
    inside = grid[(bounds[0] <= grid) & (grid <= bounds[1])]
    assert (low, high) == pytest.approx((inside[0], inside[-1]), rel=1e-9)


def test_a_letter_that_is_all_but_impossible_leaves_the_t_of_the_least_ece_as_it_is():
    log_probs, gold = halves(70, 30, 0.9)
    log_probs = np.column_stack([log_probs, np.full(100, -1e5)])
    unseen = np.array([[False, False, True]] * 100)
    fitted = its_temperature("ece")
    assert unseen_interval(fitted, log_probs, unseen, gold, 10) == pytest.approx((fitted.value, fitted.value), rel=1e-9)


def test_unseen_letters_that_reach_beyond_either_end_of_ts_interval_are_refused():
    fitted, questions = its_temperature("nll"), with_ties(2)
    low, high = unseen_interval(fitted, *questions, 10)
    checked = check_unseen(dataclasses.replace(fitted, interval=(low, high)), *questions, 10)
    assert "in 2 of 102 questions a letter lies beyond the server's top tokens, in 0 the right" in checked.warnings[0]
    for interval in ((low * 1.001, high), (low, high * 0.999)):
        with pytest.raises(UserError, match=r"ask a server that shows more tokens$"):
            check_unseen(dataclasses.replace(fitted, interval=interval), *questions, 10)


def test_unseen_letters_may_reach_the_bounds_of_t_where_its_interval_does():
    right, unseen = np.log([[0.7, 0.2, 1e-14]] * 40), np.array([[False, False, True]] * 40)
    fitted = fit_temperature(right, [0] * 40)
    assert fitted.interval[0] == pytest.approx(0.01, rel=1e-9)
    assert unseen_interval(fitted, right, unseen, np.zeros(40, dtype=int), 10)[0] == pytest.approx(0.01, rel=1e-9)
    even = np.column_stack([halves(20, 20)[0], np.full(40, -1e6)])
    gold = np.array([0, 1] * 20)
    fitted = fit_temperature(even, gold)
    assert fitted.interval[1] == 100.0
    check_unseen(fitted, even, unseen, gold, 10)
