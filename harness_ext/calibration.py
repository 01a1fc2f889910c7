"""The numbers of the harness's table, from arrays alone: accuracy, conf-ECE, cw-ECE, NLL, Brier, letter mass.

Rows are questions, columns letters A, B, C, ... A question with fewer options than there are columns holds NaN in the
rest. All of it is float64; there is no I/O, no randomness and no global. ``order="F"`` lays a letter's values side by
side in memory: reducing along so few letters is several times faster then, and worth the copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness_ext.binning import Edge, FloatArray, IntArray, bin_index
from harness_ext.errors import ScoringError


class BinGaps(NamedTuple):
    """An ECE taken apart: ``sum_c weight[c] * |sum of gap over the rows of cell c|``.

    conf-ECE has one cell a bin, and each row is in one; cw-ECE has one cell for each letter and bin, and each row is
    in as many cells as it has letters.
    """

    #: Shape (N, J): the cell of each row's entry; entries of absent letters point at cell 0 with gap 0.
    cell: IntArray
    #: Shape (N, J): what is right minus what was said, in [-1, 1].
    gap: FloatArray
    #: Shape (C,): 1/N for conf-ECE, 1/(K N_j) for cw-ECE.
    weight: FloatArray
    #: Shape (C,): how many rows the cell holds.
    rows: IntArray
    #: Shape (C,): for how many of them the prediction, or the cell's letter, is right.
    right: IntArray

    def sums(self) -> FloatArray:
        """Sum of the gaps of each cell, shape (C,)."""
        return np.bincount(self.cell.T.ravel(), self.gap.T.ravel(), len(self.weight)).astype(np.float64)

    def ece(self) -> float:
        """The error itself, in [0, 1]."""
        return float(self.weight @ np.abs(self.sums()))


def validate_rows(values: ArrayLike, gold: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Check that scores and right answers fit together.

    Args:
        values: Log-likelihoods or probabilities, shape (N, K), NaN where a question lacks the letter.
        gold: Index of the right letter of each question, shape (N,).

    Returns:
        Both as float64 and int64 arrays, the scores letter by letter in memory (Fortran order).

    Raises:
        ScoringError: No rows, a NaN inside a question's letters, an infinite value, fewer than two letters, or a
            right answer that is not one of the question's letters. The message names the row and the value.
    """
    values, answers = np.asarray(values, dtype=np.float64, order="F"), np.asarray(gold)
    if values.ndim != 2 or len(values) == 0 or answers.shape != (len(values),):
        raise ScoringError(
            f"scores have shape {values.shape} and right answers {answers.shape}; give (questions, letters) and "
            "(questions,), with at least one question"
        )
    present = ~np.isnan(values)
    count = present.sum(axis=1)
    _refuse((present[:, 1:] & ~present[:, :-1]).any(axis=1), values, "has a NaN among its letters' scores")
    _refuse(np.isinf(values).any(axis=1), values, "has an infinite score")
    _refuse(count < 2, values, "has fewer than two letters")
    if not np.issubdtype(answers.dtype, np.integer):
        whole = [isinstance(a, (int, np.integer)) and not isinstance(a, bool) for a in answers.tolist()]
        _refuse(~np.asarray(whole), answers, "has no right answer: give the index of the right letter")
    answers = answers.astype(np.int64)
    _refuse((answers < 0) | (answers >= count), answers, "has a right answer that is not one of its letters")
    return values, answers


def _refuse(bad: NDArray[np.bool_], values: NDArray, complaint: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise ScoringError(
            f"row {row} {complaint}: {np.asarray(values[row]).tolist()!r}; mend or remove the row and score again"
        )


def letter_log_softmax(loglikelihoods: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Log-probabilities over the question's own letters (paper Eq 1), with a temperature.

    Args:
        loglikelihoods: Shape (N, K), natural logarithms; NaN where the letter is absent.
        temperature: T > 0; the log-likelihoods are divided by it first.

    Returns:
        Shape (N, K), at most 0; NaN is kept.

    Raises:
        ScoringError: T is not a finite positive number.

    Example:
        >>> np.exp(letter_log_softmax([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ScoringError(f"temperature is {temperature!r}; give a finite number above 0")
    scaled = np.asarray(loglikelihoods, dtype=np.float64, order="F") / temperature
    shifted = scaled - np.fmax.reduce(scaled, axis=1, keepdims=True)
    return shifted - np.log(_row_sum(np.exp(shifted)))[:, None]


def _row_sum(values: FloatArray) -> FloatArray:
    values = np.asarray(values, order="F")
    return np.where(np.isnan(values), 0.0, values).sum(axis=1)


def _is_right(letters: int, gold: IntArray) -> NDArray[np.bool_]:
    return (np.arange(letters)[:, None] == gold).T


def top(probs: FloatArray) -> tuple[FloatArray, IntArray]:
    """Confidence and prediction of each question; among equal probabilities the first letter wins.

    Args:
        probs: Shape (N, K), NaN where the letter is absent.

    Returns:
        The highest probability and its letter's index, both of shape (N,).
    """
    probs = np.asarray(probs, order="F")
    confidence, predicted = np.fmax.reduce(probs, axis=1), np.zeros(len(probs), dtype=np.int64)
    for letter in reversed(range(probs.shape[1])):
        np.copyto(predicted, letter, where=probs[:, letter] == confidence)
    return confidence, predicted


def accuracy(probs: FloatArray, gold: IntArray) -> float:
    """Share of questions whose most probable letter is the right one, in [0, 1]."""
    return float(np.mean(top(probs)[1] == gold))


def confidence_gaps(probs: FloatArray, gold: IntArray, n_bins: int | FloatArray = 10, edge: Edge = "left") -> BinGaps:
    """The cells of conf-ECE (paper Eq 19): bins over the confidence; gap = right (0 or 1) minus confidence."""
    conf, predicted = top(probs)
    size = int(n_bins) if isinstance(n_bins, (int, np.integer)) else len(n_bins) - 1
    index, correct = bin_index(conf, n_bins, edge), predicted == gold
    weight = np.full(size, 1.0 / len(conf))
    rows, right = (np.bincount(each, minlength=size) for each in (index, index[correct]))
    return BinGaps(index[:, None], (correct - conf)[:, None], weight, rows, right)


def classwise_gaps(probs: FloatArray, gold: IntArray, n_bins: int = 10, edge: Edge = "left") -> BinGaps:
    """The cells of cw-ECE (paper Eq 20): bins over each letter's own probability, letter by letter.

    With ragged K, letter j averages over the N_j questions that have it, and K is the number of letters seen.
    """
    probs = np.asarray(probs, order="F")
    present = ~np.isnan(probs)
    filled = np.where(present, probs, 0.0)
    letters = probs.shape[1]
    cell = np.where(present, bin_index(filled, n_bins, edge) + n_bins * np.arange(letters), 0)
    gap = np.where(present, _is_right(letters, gold) - filled, 0.0)
    questions = present.sum(axis=0)
    seen = questions > 0
    weight = np.divide(1.0, questions * seen.sum(), out=np.zeros(letters), where=seen)
    rows = np.bincount(cell.T.ravel(), minlength=n_bins * letters)
    rows[0] -= (~present).sum()
    right = np.bincount(cell[np.arange(len(gold)), gold], minlength=n_bins * letters)
    return BinGaps(cell, gap, np.repeat(weight, n_bins), rows, right)


def conf_ece(probs: FloatArray, gold: IntArray, n_bins: int | FloatArray = 10, edge: Edge = "left") -> float:
    """Expected calibration error of the confidence, paper Eq 19: ``sum_m |B_m|/N |acc(B_m) - conf(B_m)|``.

    Args:
        probs: Shape (N, K), rows summing to 1 over the question's letters, NaN where the letter is absent.
        gold: Shape (N,), index of the right letter.
        n_bins: M equal-width bins (the paper: 10, and 14 as the check), or edges.
        edge: See :func:`harness_ext.binning.bin_index`.

    Returns:
        A number in [0, 1]; empty bins add 0.

    Example:
        >>> round(conf_ece(np.array([[0.8, 0.2], [0.7, 0.3]]), np.array([0, 1])), 12)
        0.45
    """
    return confidence_gaps(probs, gold, n_bins, edge).ece()


def cw_ece(probs: FloatArray, gold: IntArray, n_bins: int = 10, edge: Edge = "left") -> float:
    """Class-wise expected calibration error, paper Eq 20; see :func:`classwise_gaps` for ragged K.

    Args:
        probs: Shape (N, K), NaN where the letter is absent.
        gold: Shape (N,).
        n_bins: M equal-width bins.
        edge: See :func:`harness_ext.binning.bin_index`.

    Returns:
        A number in [0, 1].
    """
    return classwise_gaps(probs, gold, n_bins, edge).ece()


def nll(log_probs: FloatArray, gold: IntArray) -> float:
    """Mean negative log-probability of the right letter in nats, from 0 up; chance level is ln K."""
    return float(-np.mean(log_probs[np.arange(len(gold)), gold]))


def brier(probs: FloatArray, gold: IntArray) -> float:
    """Brier score: squared distance to the right answer, summed over the letters, averaged over questions; [0, 2]."""
    return float(np.mean(brier_rows(probs, gold)))


def brier_rows(probs: FloatArray, gold: IntArray) -> FloatArray:
    """The Brier score of each question, shape (N,), in [0, 2] (Brier 1950)."""
    return _row_sum((probs - _is_right(probs.shape[1], gold)) ** 2)


def letter_mass(loglikelihoods: FloatArray) -> float:
    """Mean probability that the model gave to any of the question's letters, in [0, 1]; low means it says other things.

    Args:
        loglikelihoods: The model's own, before any softmax over the letters; shape (N, K), NaN where absent.
    """
    return float(np.mean(_row_sum(np.exp(loglikelihoods))))
