import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from calibtune.tuning.temperature import cross_fitted, fit_temperature
from harness_ext.calibration import accuracy, conf_ece, letter_log_softmax, nll


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


def test_the_ece_objective_finds_a_lower_ece_than_the_nll_one():
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
