"""Bounds of what counts as probabilities or log-probabilities; test_metrics.py has what the public metrics refuse."""

import numpy as np
import pytest

from harness_ext.errors import UserError
from harness_ext.inputs import checked_log_probs, checked_probs


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1 + 2e-6, 0.0], "row 1 of probs holds 1, which is outside"),
        ([-0.1, 1.1], r"row 1 of probs holds -0.1, which is outside \[0, 1\]"),
        ([0.5, 0.502], "row 1 of probs sums to 1.002, not to 1"),
        ([0.5, 0.498], "row 1 of probs sums to 0.998, not to 1"),
    ],
)
def test_one_wrong_row_among_right_ones_is_named(row, message):
    with pytest.raises(UserError, match=message):
        checked_probs([[0.5, 0.5], row], [0, 0])


def test_rounded_and_single_precision_probabilities_are_taken_and_end_at_one():
    found = checked_probs([[0.3333, 0.3333, 0.3333], [1 + 1e-6, 0.0, np.nan]], [0, 1])[0]
    assert found[:, 0].tolist() == [0.3333, 1.0]


def test_half_precision_may_be_a_hundredth_off():
    row = np.array([[0.5, 0.505]])
    assert checked_probs(row.astype(np.float16), [0])[0].dtype == np.float64
    for refused in (row, row.astype(np.float32), np.array([[0.5, 0.52]], dtype=np.float16)):
        with pytest.raises(UserError, match="sums to"):
            checked_probs(refused, [0])


@pytest.mark.parametrize("values", [[[2.0, 3.0]], [[-1.0, 2.0]], [[0.4, 0.6], [3.0, 4.0]], [[0.75, 0.75]]])
def test_values_that_are_no_probabilities_are_taken_as_logarithms(values):
    log_probs, labels = checked_log_probs(values)
    assert log_probs.tolist() == values
    assert labels.tolist() == [0] * len(values)


def test_probabilities_in_place_of_logarithms_are_refused_whatever_their_precision():
    for values in ([[0.0, 1.0]], [[0.4, 0.6], [0.995, 0.0]]):
        with pytest.raises(UserError, match="log_probs holds probabilities"):
            checked_log_probs(values, [0] * len(values))
