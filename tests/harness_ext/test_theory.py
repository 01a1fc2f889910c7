"""Section 4 of arXiv 2505.01997: what holds for every model and p*, and the counterexamples of docs/theory.md."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.calibration import accuracy, conf_ece, cw_ece, top
from harness_ext.errors import UserError
from harness_ext.world.facts import facts
from harness_ext.world.theory import measure_theory, true_calibration_error

ROUNDING, NUDGE = 1e-12, 1e-9
many = settings(max_examples=200, deadline=None)


def simplex(rng, rows, letters):
    """Rows on the simplex; ties, certainty and zeros are frequent."""
    values = np.where(
        rng.random((rows, letters)) < 0.5, rng.integers(0, 4, (rows, letters)), 3 * rng.random((rows, letters))
    )
    values[values.sum(axis=1) == 0] = 1.0
    return values / values.sum(axis=1, keepdims=True)


def instance_of(seed):
    """A model, p*, and answers drawn from p*."""
    rng = np.random.default_rng(seed)
    rows, letters = rng.integers(1, 13), rng.integers(2, 6)
    p, p_star = simplex(rng, rows, letters), simplex(rng, rows, letters)
    return p, p_star, np.array([rng.choice(letters, p=row) for row in p_star])


#: Drawn from a seed: an array of hypothesis's own values takes a hundred times as long.
instances = st.integers(0, 2**32 - 1).map(instance_of)


def swapped(p_star, gold, count):
    """The model of Theorem 4.4's proof: p* with its prediction swapped on as many questions as it takes."""
    made, predicted = p_star.copy(), top(p_star)[1]
    right = predicted == gold
    surplus = int(right.sum()) - count
    for row in np.flatnonzero(right if surplus > 0 else ~right)[: abs(surplus)]:
        first = predicted[row]
        other = gold[row] if surplus < 0 else np.argmax(np.where(np.arange(len(p_star[row])) == first, -1, p_star[row]))
        made[row, [first, other]] = made[row, [other, first]]
        # Ties go to the first letter, so that a swap alone can change nothing.
        made[row] = made[row] * (1 - NUDGE) + NUDGE * (np.arange(len(p_star[row])) == other)
    return made


@many
@given(instances, st.data())
def test_some_model_of_any_drawn_accuracy_has_at_most_twice_its_distance_to_acc_star(instance, data):
    """Theorem 4.4, on the answers as they fell."""
    _, p_star, gold = instance
    count = data.draw(st.integers(0, len(gold)))
    made = swapped(p_star, gold, count)
    assert accuracy(made, gold) == count / len(gold)
    found = measure_theory(made, p_star, gold)
    assert found.tce.estimate <= found.upper + 2 * NUDGE


@many
@given(instances)
def test_tce_is_at_least_c_times_the_distance_of_drawn_accuracies(instance):
    """Theorem 4.5, with c measured."""
    p, p_star, gold = instance
    found = measure_theory(p, p_star, gold)
    assert found.above.estimate == pytest.approx(accuracy(p, gold) - accuracy(p_star, gold))
    assert found.tce.estimate >= found.lower - ROUNDING


@many
@given(instances)
def test_expected_accuracy_is_at_most_acc_star_and_tce_at_least_what_it_lacks(instance):
    """Theorem 4.5 with c = 1, for the accuracy that is expected over the answers."""
    found = measure_theory(*instance)
    assert found.acc <= found.acc_star + ROUNDING
    assert found.tce.estimate >= found.acc_star - found.acc - ROUNDING


@many
@given(instances)
def test_expected_cw_ece_is_at_most_tce_by_letter_and_expected_conf_ece_half_of_tce(instance):
    """Theorem 4.6, a factor of K sharper."""
    found = measure_theory(*instance)
    assert found.cw_ece <= found.tce.estimate / instance[0].shape[1] + ROUNDING
    assert found.conf_ece <= found.tce.estimate / 2 + ROUNDING


@many
@given(instances)
def test_expected_eces_are_those_of_infinitely_many_answers(instance):
    p, p_star, _ = instance
    copies = 2000
    shares = np.floor(p_star * copies).astype(int)
    rows = np.repeat(np.arange(len(p)), shares.sum(axis=1))
    gold = np.concatenate([np.repeat(np.arange(p.shape[1]), row) for row in shares])
    found = measure_theory(p, p_star, instance[2])
    slack = 3 * p.shape[1] / copies
    assert found.conf_ece == pytest.approx(conf_ece(p[rows], gold), abs=slack)
    assert found.cw_ece == pytest.approx(cw_ece(p[rows], gold), abs=slack)
    assert found.acc == pytest.approx(accuracy(p[rows], gold), abs=slack)


def test_bound_without_a_question_that_one_model_alone_gets_right_is_zero():
    p_star = np.array([[0.6, 0.4], [0.6, 0.4]])
    found = measure_theory(np.array([[0.9, 0.1], [0.8, 0.2]]), p_star, np.array([0, 1]))
    assert (found.one_right, found.c, found.lower, found.upper) == (0, None, 0, 0)


def test_lower_bound_with_c_1_is_reached_by_halfway_to_the_other_prediction():
    p_star, gold = np.array([[0.2, 0.8]]), np.array([1])
    found = measure_theory(np.array([[0.5, 0.5]]), p_star, gold)
    assert found.tce.estimate == pytest.approx(found.acc_star - found.acc) == pytest.approx(0.6)


def test_counterexample_an_overconfident_model_is_above_the_upper_line():
    """Theorem 4.4 is about some model, not about all: same predictions as p*, other confidence."""
    p_star, gold = np.array([[0.6, 0.4]] * 5), np.array([0, 0, 0, 1, 1])
    found = measure_theory(np.array([[1.0, 0.0]] * 5), p_star, gold)
    assert found.upper == 0
    assert found.tce.estimate == pytest.approx(0.8)


def test_counterexample_expected_accuracy_cannot_be_any_number():
    """Theorem 4.4's "any accuracy" needs answers as they fell: with equal p*, each model expects 1/K."""
    p_star = np.full((3, 4), 0.25)
    for p in (np.eye(4)[:3], np.eye(4)[1:], p_star):
        assert measure_theory(p, p_star, np.zeros(3, dtype=int)).acc == 0.25


def test_counterexample_drawn_cw_ece_of_p_star_itself_is_above_its_tce():
    """Theorem 4.6 is about expected frequencies; a sample's cw-ECE has the noise of the draw."""
    p_star, gold = np.array([[0.6, 0.4]]), np.array([0])
    found = measure_theory(p_star, p_star, gold)
    assert found.tce.estimate == found.cw_ece == 0
    assert cw_ece(p_star, gold) == pytest.approx(0.4)


def test_counterexample_a_letter_that_few_questions_have_lifts_cw_ece_above_tce():
    """With our average over the N_j questions that have letter j, a rare letter weighs as much as a common one."""
    p_star = np.array([[1.0, 0.0, np.nan]] * 99 + [[0.0, 0.0, 1.0]])
    p = p_star.copy()
    p[-1] = [0.0, 1.0, 0.0]
    found = measure_theory(p, p_star, np.array([0] * 99 + [2]))
    assert found.tce.estimate == pytest.approx(0.02)
    assert found.cw_ece > 0.3


def test_counterexample_ece_0_and_acc_star_do_not_make_p_star():
    """Definition 4.2: a model that is sure of acc* everywhere is as accurate and as calibrated as p*."""
    p_star, gold = np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([0, 0])
    same = np.array([[0.7, 0.3], [0.7, 0.3]])
    found = measure_theory(same, p_star, gold)
    assert found.acc == found.acc_star == pytest.approx(0.7)
    assert found.conf_ece == pytest.approx(0)
    assert found.tce.estimate == pytest.approx(0.4)


def test_counterexample_answers_learned_by_heart_have_ece_0_above_acc_star():
    """`acc > acc*` forces no ECE on the very answers that were learned; it does on answers drawn anew."""
    p_star, gold = np.array([[0.6, 0.4]] * 5), np.array([0, 0, 0, 1, 1])
    learned = np.eye(2)[gold]
    found = measure_theory(learned, p_star, gold)
    assert found.above.estimate == pytest.approx(0.4)
    assert conf_ece(learned, gold) == 0
    assert found.conf_ece == pytest.approx(1 - found.acc) == pytest.approx(0.48)


def test_reading_of_ragged_letters_and_of_one_question():
    p = np.array([[0.5, 0.5, np.nan], [0.2, 0.3, 0.5]])
    assert true_calibration_error(p, np.array([[0.7, 0.3, np.nan], [0.2, 0.3, 0.5]])) == pytest.approx(0.2)
    with pytest.raises(UserError, match="row 0 has other letters"):
        true_calibration_error(p, np.nan_to_num(p))
    one = measure_theory(p[1:], p[1:], np.array([0]))
    assert (one.tce.low, one.tce.high, one.above.low, one.above.high) == (0, 2, -1, 1)


def test_intervals_of_tce_and_of_the_distance_to_acc_star_cover():
    p_star = np.array([fact.p_star for fact in facts()])
    rng = np.random.default_rng(0)
    said = p_star**2 / (p_star**2).sum(axis=1, keepdims=True)
    said[::3] = np.roll(said[::3], 1, axis=1)
    whole, hits = measure_theory(said, p_star, np.zeros(len(p_star), dtype=int)), np.zeros(2)
    trials = 300
    for _ in range(trials):
        rows = rng.integers(len(p_star), size=300)
        gold = np.array([rng.choice(4, p=p_star[row]) for row in rows])
        found = measure_theory(said[rows], p_star[rows], gold)
        hits += [
            found.tce.low <= whole.tce.estimate <= found.tce.high,
            found.above.low <= whole.acc - whole.acc_star <= found.above.high,
        ]
    assert (hits / trials > 0.92).all()
