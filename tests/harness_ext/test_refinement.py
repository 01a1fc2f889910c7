"""The best temperature against scipy's search, and temperatures of other questions."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from harness_ext import refinement
from harness_ext.calibration import letter_log_softmax, nll
from harness_ext.refinement import FOLDS, best_temperature, held_out_temperatures, parts


def simulated(rows, temperature, seed=0, letters=4):
    """Letters whose right answer is drawn at T = 1, then sharpened."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, letters))
    probs = np.exp(letter_log_softmax(logits))
    return logits * temperature, (probs.cumsum(1)[:, :-1] < rng.random((rows, 1))).sum(1)


@pytest.mark.parametrize("temperature", [0.02, 0.3, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("ragged", [False, True])
def test_best_temperature_is_the_one_that_scipy_finds(temperature, ragged):
    log_probs, gold = simulated(200, temperature)
    if ragged:
        log_probs[::2, 3] = np.nan
        gold = np.minimum(gold, 2)

    def loss(log_t):
        return nll(letter_log_softmax(log_probs, np.exp(log_t)), gold)

    expected = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-9})
    assert np.log(best_temperature(log_probs, gold)) == pytest.approx(expected.x, abs=1e-6)


def test_best_temperature_of_two_letters_by_hand():
    # Right in 3 of 4: the letters' odds at T are 3, so that e^(2 / T) = 3.
    log_probs = np.array([[-1.0, -3.0]] * 4)
    assert best_temperature(log_probs, np.array([0, 0, 1, 0])) == pytest.approx(2 / np.log(3), rel=1e-12)


def test_best_temperature_ends_at_the_bounds():
    log_probs, _ = simulated(50, 1.0)
    best, worst = np.argmax(log_probs, axis=1), np.argmin(log_probs, axis=1)
    assert best_temperature(log_probs, best) == pytest.approx(0.01, rel=1e-6)
    assert best_temperature(log_probs, worst) == pytest.approx(100, rel=1e-6)


def test_letters_that_are_all_equal_stay_as_they_are():
    assert best_temperature(np.full((5, 4), -3.0), np.zeros(5, dtype=int)) == 1


def test_log_probs_may_be_shifted_question_by_question():
    log_probs, gold = simulated(100, 2.0)
    shifted = log_probs - 900 * np.arange(100)[:, None]
    assert best_temperature(shifted, gold) == pytest.approx(best_temperature(log_probs, gold), rel=1e-9)


def test_parts_hold_each_question_once_and_are_as_large_as_each_other():
    found = np.array(parts(52, seed=3))
    assert found.sum(axis=0).tolist() == [1] * 52
    assert sorted(found.sum(axis=1)) == [10, 10, 10, 11, 11]
    assert (found == parts(52, seed=3)).all()
    assert (found != parts(52, seed=4)).any()
    assert len(parts(3, seed=0)) == 3 < FOLDS


def test_each_question_gets_the_temperature_of_the_others():
    log_probs, gold = simulated(60, 3.0)
    found = held_out_temperatures(log_probs, gold, seed=1)
    for inside in parts(60, seed=1):
        assert set(found[inside]) == {best_temperature(log_probs[~inside], gold[~inside])}
    assert len(set(found)) == 5
    assert (held_out_temperatures(log_probs, gold) == held_out_temperatures(log_probs, gold, seed=0)).all()


def test_another_search_may_be_given():
    log_probs, gold = simulated(20, 1.0)
    assert held_out_temperatures(log_probs, gold, lambda values, labels: len(labels)).tolist() == [16] * 20


def test_a_question_that_is_alone_keeps_its_probabilities():
    assert held_out_temperatures(np.array([[-1.0, -2.0]]), np.array([0])).tolist() == [1]
    assert held_out_temperatures(np.log([[0.9, 0.1], [0.7, 0.3]]), np.array([0, 1])) == pytest.approx([100, 0.01])


@pytest.mark.parametrize("temperature", [0.02, 0.3, 1.0, 4.0, 40.0])
def test_few_passes_over_the_questions_are_enough(monkeypatch, temperature):
    passes, derivatives = [], refinement._derivatives
    monkeypatch.setattr(refinement, "_derivatives", lambda *rows: passes.append(1) or derivatives(*rows))
    best_temperature(*simulated(500, temperature))
    # Halving alone would need 36.
    assert len(passes) <= 9
