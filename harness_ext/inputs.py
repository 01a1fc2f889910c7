"""Check arrays that come from users: probabilities or log-probabilities of the letters, and the right answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import validate_rows
from harness_ext.errors import UserError

#: How far a row of probabilities may be from summing to 1: that of rounded numbers, and of half precision.
SUM, HALF_SUM = 1e-3, 1e-2
#: A softmax in single precision may exceed 1 by this much.
ABOVE_ONE = 1e-6


def checked_probs(probs: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Check probabilities and right answers, and convert them.

    Args:
        probs: Probabilities of the letters, shape (N, K), rows summing to 1 over the question's letters, NaN where a
            question has fewer letters.
        labels: Index of the right letter, shape (N,).

    Returns:
        Both, float64 and int64.

    Raises:
        UserError: See :func:`harness_ext.calibration.validate_rows`; or a value is outside [0, 1], or a row does
            not sum to 1.

    Example:
        >>> checked_probs([[0.5, 0.6]], [0])
        Traceback (most recent call last):
        harness_ext.errors.UserError: row 0 of probs sums to 1.1, not to 1; give probabilities over the letters
    """
    values, answers = _checked(probs, labels, "probs")
    outside = (values < 0) | (values > 1 + ABOVE_ONE)
    if outside.any():
        row, letter = np.argwhere(outside)[0]
        raise UserError(
            f"row {row} of probs holds {values[row, letter]:.6g}, which is outside [0, 1]; give probabilities: "
            "letter_probs makes them from log-probabilities"
        )
    sums = np.nansum(values, axis=1)
    off = np.abs(sums - 1) > (HALF_SUM if getattr(probs, "dtype", None) == np.float16 else SUM)
    if off.any():
        row = int(np.argmax(off))
        raise UserError(f"row {row} of probs sums to {sums[row]:.6g}, not to 1; give probabilities over the letters")
    return np.minimum(values, 1.0), answers


def checked_log_probs(log_probs: ArrayLike, labels: ArrayLike | None = None) -> tuple[FloatArray, IntArray]:
    """Check log-probabilities and right answers, and convert them.

    Args:
        log_probs: Log-probabilities of the letters (natural logarithms), shape (N, K), NaN where a question has fewer
            letters. They need not sum to 1 over the letters.
        labels: Index of the right letter, shape (N,); None where right answers are not needed.

    Returns:
        Both, float64 and int64; zeros for labels that were not given.

    Raises:
        UserError: See :func:`harness_ext.calibration.validate_rows`; or the values are probabilities.

    Example:
        >>> checked_log_probs([[0.25, 0.75]], [0])
        Traceback (most recent call last):
        harness_ext.errors.UserError: log_probs holds probabilities (rows within [0, 1] that sum to 1); give their \
logarithms, np.log(probs)
    """
    if labels is None:
        labels = np.zeros(len(_array(log_probs, "log_probs")), dtype=np.int64)
    values, answers = _checked(log_probs, labels, "log_probs")
    if np.nanmin(values) >= 0 and (np.abs(np.nansum(values, axis=1) - 1) <= HALF_SUM).all():
        raise UserError(
            "log_probs holds probabilities (rows within [0, 1] that sum to 1); give their logarithms, np.log(probs)"
        )
    return values, answers


def _checked(values: ArrayLike, labels: ArrayLike, name: str) -> tuple[FloatArray, IntArray]:
    try:
        return validate_rows(_array(values, name), labels)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _array(values: ArrayLike, name: str) -> FloatArray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} is no array of numbers with one row a question ({error}); fill rows of fewer letters up with NaN"
        ) from None
    if array.ndim != 2:
        raise UserError(f"{name} has shape {array.shape}; give (questions, letters)")
    return array
