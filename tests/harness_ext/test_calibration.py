import math

import numpy as np
import pytest

from harness_ext.calibration import (
    accuracy,
    brier,
    classwise_gaps,
    conf_ece,
    confidence_gaps,
    cw_ece,
    letter_log_softmax,
    letter_mass,
    nll,
    top,
    validate_rows,
)
from harness_ext.errors import UserError

NAN = np.nan


def test_conf_ece_of_two_bins_by_hand():
    # Bin [.6, .7): .65 right, .6 wrong: accuracy .5, confidence .625. Bin [.9, 1]: .9 and 1 right: gap .05.
    probs = np.array([[0.65, 0.35], [0.4, 0.6], [0.9, 0.1], [0.0, 1.0]])
    gold = np.array([0, 0, 0, 1])
    assert conf_ece(probs, gold) == pytest.approx(0.5 * 0.125 + 0.5 * 0.05)


def test_gaps_cancel_within_a_bin_but_not_across_bins():
    probs = np.array([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.25, 0.75]])
    assert conf_ece(probs, np.array([0, 0, 0, 0])) == 0
    assert conf_ece(np.array([[0.6, 0.4], [0.8, 0.2]]), np.array([0, 1])) == pytest.approx(0.6)


def test_ece_of_a_certain_wrong_answer_is_one_and_right_is_zero():
    assert conf_ece(np.array([[1.0, 0.0]]), np.array([1])) == 1
    assert conf_ece(np.array([[1.0, 0.0]]), np.array([0])) == 0
    assert cw_ece(np.array([[1.0, 0.0]]), np.array([1])) == 1


def test_conf_ece_follows_the_edge_option():
    # .6 is alone in [.6, .7) with left edges, and shares (.5, .6] with .55 with right ones.
    probs, gold = np.array([[0.6, 0.4], [0.55, 0.45]]), np.array([0, 1])
    assert conf_ece(probs, gold) == pytest.approx((0.4 + 0.55) / 2)
    assert conf_ece(probs, gold, edge="right") == pytest.approx(abs(0.4 - 0.55) / 2)


def test_conf_ece_accepts_edges_as_bins():
    probs, gold = np.array([[0.6, 0.4], [0.8, 0.2]]), np.array([0, 1])
    assert conf_ece(probs, gold, np.array([0.0, 0.5, 1.0])) == pytest.approx(abs(1 - 1.4) / 2)


def test_cw_ece_by_hand():
    # Letter A: .7 right, .2 wrong; B: .2, .2 (one of two right); C: .1 wrong, .6 right.
    probs, gold = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]), np.array([0, 1])
    a = (0.3 + 0.2) / 2
    b = abs(1 - 0.4) / 2
    c = (0.1 + 0.6) / 2
    assert cw_ece(probs, gold) == pytest.approx((a + b + c) / 3)


def test_cw_ece_averages_a_letter_over_questions_that_have_it():
    # C is asked once (gap |0 - .2|, over one question), A and B twice; three letters were seen.
    probs = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, NAN]])
    a, b, c = (0.5 + 0.1) / 2, (0.3 + 0.1) / 2, 0.2
    assert cw_ece(probs, np.array([0, 0])) == pytest.approx((a + b + c) / 3)


def test_unused_letter_does_not_change_ece():
    probs, gold = np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 0])
    wider = np.column_stack([probs, [NAN, NAN]])
    assert cw_ece(wider, gold) == cw_ece(probs, gold)
    assert conf_ece(wider, gold) == conf_ece(probs, gold)
    assert classwise_gaps(wider, gold).weight.tolist() == [0.25] * 20 + [0.0] * 10


def test_absent_letters_are_not_zero_probabilities():
    probs = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, NAN]])
    assert cw_ece(probs, np.array([0, 0])) != pytest.approx(cw_ece(np.nan_to_num(probs), np.array([0, 0])))


def test_classwise_gaps_by_hand():
    probs, gold = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]), np.array([0, 1])
    gaps = classwise_gaps(probs, gold)
    assert gaps.cell.tolist() == [[7, 12, 21], [2, 12, 26]]
    assert gaps.gap == pytest.approx(np.array([[0.3, -0.2, -0.1], [-0.2, 0.8, -0.6]]))
    assert gaps.weight == pytest.approx(np.full(30, 1 / 6))
    assert confidence_gaps(probs, gold).sums()[[6, 7]] == pytest.approx([-0.6, 0.3])


def test_gaps_count_the_rows_and_the_right_answers_of_each_cell():
    # C is absent from the first question, whose empty place must not count in cell 0.
    probs, gold = np.array([[0.75, 0.25, NAN], [0.05, 0.25, 0.7]]), np.array([0, 1])
    gaps = classwise_gaps(probs, gold)
    assert np.flatnonzero(gaps.rows).tolist() == [0, 7, 12, 27]
    assert gaps.rows[[0, 7, 12, 27]].tolist() == [1, 1, 2, 1]
    assert np.flatnonzero(gaps.right).tolist() == [7, 12]
    assert len(gaps.rows) == len(gaps.right) == 30
    gaps = confidence_gaps(probs, gold, np.array([0.0, 0.72, 0.9, 1.0]))
    assert [gaps.rows.tolist(), gaps.right.tolist(), gaps.weight.tolist()] == [[1, 1, 0], [0, 1, 0], [0.5] * 3]


def test_ten_bins_are_the_default():
    probs, gold = np.array([[0.65, 0.35], [0.62, 0.38], [0.78, 0.22]]), np.array([0, 1, 1])
    for gaps, ece in ((confidence_gaps, conf_ece), (classwise_gaps, cw_ece)):
        assert (
            gaps(probs, gold).ece() == ece(probs, gold) == ece(probs, gold, 10) != pytest.approx(ece(probs, gold, 11))
        )


def test_softmax_is_over_the_questions_own_letters():
    found = np.exp(letter_log_softmax([[math.log(0.2), math.log(0.6), NAN], [0.0, 0.0, 0.0]]))
    assert found[0, :2] == pytest.approx([0.25, 0.75])
    assert np.isnan(found[0, 2])
    assert found[1] == pytest.approx([1 / 3] * 3)


def test_temperature_divides_the_logits_and_must_be_positive():
    cool, hot = np.exp(letter_log_softmax([[0.0, -2.0]])), np.exp(letter_log_softmax([[0.0, -2.0]], 2.0))
    assert cool[0, 0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert hot[0, 0] == pytest.approx(1 / (1 + math.exp(-1)))
    for bad in (0.0, -1.0, NAN, math.inf):
        with pytest.raises(UserError, match="temperature is"):
            letter_log_softmax([[0.0, 0.0]], bad)


def test_very_low_log_likelihoods_do_not_underflow():
    found = letter_log_softmax([[-5000.0, -5001.0], [0.0, -2000.0]])
    assert found[0] == pytest.approx([-math.log1p(math.exp(-1)), -1 - math.log1p(math.exp(-1))])
    assert found[1].tolist() == [0.0, -2000.0]


def test_top_prefers_the_first_tied_letter_and_skips_absent_ones():
    confidence, predicted = top(np.array([[0.4, 0.4, 0.2], [0.5, 0.5, NAN], [0.1, 0.9, NAN]]))
    assert confidence.tolist() == [0.4, 0.5, 0.9]
    assert predicted.tolist() == [0, 0, 1]


def test_accuracy_nll_brier_and_letter_mass_by_hand():
    logs = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.8, NAN]]))
    gold = np.array([1, 1])
    assert accuracy(np.exp(logs), gold) == 0.5
    assert nll(logs, gold) == pytest.approx((math.log(4) - math.log(0.8)) / 2)
    assert brier(np.exp(logs), gold) == pytest.approx((0.25 + 0.5625 + 0.0625 + 0.04 + 0.04) / 2)
    assert letter_mass(logs - 1.0) == pytest.approx(math.exp(-1))


def test_uniform_model_is_at_chance():
    logs = letter_log_softmax(np.zeros((8, 4)))
    gold = np.arange(8) % 4
    assert nll(logs, gold) == pytest.approx(math.log(4))
    assert brier(np.exp(logs), gold) == pytest.approx(0.75)
    assert conf_ece(np.exp(logs), gold) == pytest.approx(0)


@pytest.mark.parametrize(
    ("values", "gold", "message"),
    [
        ([[0.5, 0.5], [NAN, 0.5]], [0, 0], r"row 1 has a NaN among its letters' scores: \[nan, 0.5\]"),
        ([[0.5, NAN, 0.2, 0.3]], [0], r"row 0 has a NaN among its letters' scores: \[0.5, nan, 0.2, 0.3\]"),
        ([[NAN, 0.5, 0.5]], [1], "row 0 has a NaN among its letters' scores"),
        ([[[0.5, 0.5]]], [0], r"scores have shape \(1, 1, 2\)"),
        ([[0.5, 0.5], [0.5, NAN]], [0, 0], "row 1 has fewer than two letters"),
        ([[0.5, 0.5], [NAN, NAN]], [0, 0], "row 1 has fewer than two letters"),
        ([[0.5, -np.inf]], [0], r"row 0 has an infinite score: \[0.5, -inf\]"),
        ([[0.5, 0.5]], [2], "row 0 has a right answer that is not one of its letters: 2"),
        ([[0.5, 0.5, NAN]], [2], "row 0 has a right answer that is not one of its letters: 2"),
        ([[0.5, 0.5]], [-1], "row 0 has a right answer that is not one of its letters: -1"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, None], "row 1 has no right answer: give the index of the right letter: None"),
        ([[0.5, 0.5]], ["A"], "row 0 has no right answer.*'A'"),
        ([[0.5, 0.5]], [True], "row 0 has no right answer.*True"),
        ([[0.5, 0.5]], [0.5], "row 0 has no right answer.*0.5"),
        ([], [], "at least one question"),
        ([[0.5, 0.5]], [0, 1], r"right answers \(2,\)"),
    ],
)
def test_invalid_rows_are_refused(values, gold, message):
    with pytest.raises(UserError, match=message):
        validate_rows(values, gold)


def test_valid_rows_are_returned_as_float64_and_int64():
    values, gold = validate_rows(np.array([[1, 2], [3, 4]], dtype=np.float32), np.array([0, 1], dtype=np.uint8))
    assert (values.dtype, gold.dtype) == (np.float64, np.int64)
