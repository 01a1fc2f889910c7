"""Compute accuracy, conf-ECE, cw-ECE, NLL, Brier score and letter mass from arrays.

Rows are questions and columns are the letters A, B, C, ... Columns beyond a question's options hold
NaN. Everything is computed in float64, without I/O, randomness or global state. Arrays are stored
letter by letter (``order="F"``): reducing over the few letters is then several times faster, which
is worth the copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness_ext.binning import Edge, FloatArray, IntArray, bin_index
from harness_ext.errors import UserError


class BinGaps(NamedTuple):
    """Hold the terms of an ECE: ``ECE = sum_c weight[c] * |sum of the gaps in cell c|``.

    A cell of conf-ECE is a bin, and each question is in one cell (J = 1). A cell of cw-ECE is a
    bin of one letter, and each question is in one cell per letter (J = K).
    """

    #: Shape (N, J): the cell of each entry; absent letters have cell 0 and gap 0.
    cell: IntArray
    #: Shape (N, J): 1 if right, else 0, minus the probability; in [-1, 1].
    gap: FloatArray
    #: Shape (C,): 1/N for conf-ECE, 1/(K N_j) for cw-ECE.
    weight: FloatArray
    #: Shape (C,): how many rows the cell holds.
    rows: IntArray
    #: Shape (C,): for how many of them the prediction, or the cell's letter, is right.
    right: IntArray

    def sums(self) -> FloatArray:
        """Return the sum of the gaps in each cell, shape (C,)."""
        return np.bincount(self.cell.T.ravel(), self.gap.T.ravel(), len(self.weight)).astype(np.float64)

    def ece(self) -> float:
        """Return the ECE, in [0, 1]."""
        return float(self.weight @ np.abs(self.sums()))


def validate_rows(values: ArrayLike, gold: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Check that scores and right answers belong together.

    Args:
        values: Log-likelihoods or probabilities, shape (N, K), NaN where a question lacks the letter.
        gold: Index of the right letter of each question, shape (N,).

    Returns:
        The scores as float64 in Fortran order, and the right answers as int64.

    Raises:
        UserError: There are no rows, or a row has a NaN among its letters, an infinite value,
            fewer than two letters, or a right answer that is not one of its letters. The message
            names the row and the value.
    """
    values, answers = np.asarray(values, dtype=np.float64, order="F"), np.asarray(gold)
    if values.ndim != 2 or len(values) == 0 or answers.shape != (len(values),):
        raise UserError(
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
        raise UserError(
            f"row {row} {complaint}: {np.asarray(values[row]).tolist()!r}; fix or remove the row and score again"
        )


def letter_log_softmax(loglikelihoods: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Compute log-probabilities over each question's own letters (arXiv 2505.01997, Eq 1).

    Args:
        loglikelihoods: Shape (N, K), natural logarithms; NaN where the letter is absent.
        temperature: T > 0, by which the log-likelihoods are divided first.

    Returns:
        Shape (N, K), at most 0; NaN where the input is NaN.

    Raises:
        UserError: T is not a finite positive number.

    Example:
        >>> np.exp(letter_log_softmax([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise UserError(f"temperature is {temperature!r}; give a finite number above 0")
    scaled = np.asarray(loglikelihoods, dtype=np.float64, order="F") / temperature
    shifted = scaled - np.fmax.reduce(scaled, axis=1, keepdims=True)
    return shifted - np.log(_row_sum(np.exp(shifted)))[:, None]


def _row_sum(values: FloatArray) -> FloatArray:
    values = np.asarray(values, order="F")
    return np.where(np.isnan(values), 0.0, values).sum(axis=1)


def _is_right(letters: int, gold: IntArray) -> NDArray[np.bool_]:
    return (np.arange(letters)[:, None] == gold).T


def top(probs: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return confidence and prediction of each question.

    Among equal probabilities the first letter wins.

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
    """Return the share of questions whose most probable letter is the right one, in [0, 1]."""
    return float(np.mean(top(probs)[1] == gold))


def confidence_gaps(probs: FloatArray, gold: IntArray, n_bins: int | FloatArray = 10, edge: Edge = "left") -> BinGaps:
    """Return the terms of conf-ECE (arXiv 2505.01997, Eq 19): questions binned by confidence."""
    conf, predicted = top(probs)
    size = int(n_bins) if isinstance(n_bins, (int, np.integer)) else len(n_bins) - 1
    index, correct = bin_index(conf, n_bins, edge), predicted == gold
    weight = np.full(size, 1.0 / len(conf))
    rows, right = (np.bincount(each, minlength=size) for each in (index, index[correct]))
    return BinGaps(index[:, None], (correct - conf)[:, None], weight, rows, right)


def classwise_gaps(probs: FloatArray, gold: IntArray, n_bins: int = 10, edge: Edge = "left") -> BinGaps:
    """Return the terms of cw-ECE (arXiv 2505.01997, Eq 20): each letter binned by its probability.

    Where questions differ in their number of options, letter j averages over the N_j questions
    that have it, and K is the number of letters seen.
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
    """Compute the expected calibration error of the confidence (arXiv 2505.01997, Eq 19).

    ``conf-ECE = sum_m |B_m|/N |acc(B_m) - conf(B_m)|``; empty bins add 0.

    Args:
        probs: Shape (N, K), rows summing to 1 over the question's letters, NaN where the letter is
            absent.
        gold: Shape (N,), index of the right letter.
        n_bins: M for equal-width bins (10 in the paper, 14 as its check), or an array of M + 1
            edges.
        edge: See :func:`harness_ext.binning.bin_index`.

    Returns:
        A number in [0, 1].

    Raises:
        UserError: As :func:`harness_ext.binning.bin_index`.

    Example:
        >>> round(conf_ece(np.array([[0.8, 0.2], [0.7, 0.3]]), np.array([0, 1])), 12)
        0.45
    """
    return confidence_gaps(probs, gold, n_bins, edge).ece()


def cw_ece(probs: FloatArray, gold: IntArray, n_bins: int = 10, edge: Edge = "left") -> float:
    """Compute the class-wise expected calibration error (arXiv 2505.01997, Eq 20).

    ``cw-ECE = 1/K sum_j sum_m |B_mj|/N |freq_j(B_mj) - mean p_j(B_mj)|``; for questions with
    different numbers of options see :func:`classwise_gaps`.

    Args:
        probs: Shape (N, K), NaN where the letter is absent.
        gold: Shape (N,), index of the right letter.
        n_bins: M equal-width bins.
        edge: See :func:`harness_ext.binning.bin_index`.

    Returns:
        A number in [0, 1].

    Raises:
        UserError: As :func:`harness_ext.binning.bin_index`.
    """
    return classwise_gaps(probs, gold, n_bins, edge).ece()


def nll(log_probs: FloatArray, gold: IntArray) -> float:
    """Compute the mean negative log-probability of the right letter in nats, at least 0.

    Equal probabilities give ln K.
    """
    return float(-np.mean(log_probs[np.arange(len(gold)), gold]))


def brier(probs: FloatArray, gold: IntArray) -> float:
    """Compute the Brier score, ``mean_n sum_j (p_nj - 1[j = gold_n])^2``, in [0, 2]."""
    return float(np.mean(brier_rows(probs, gold)))


def brier_rows(probs: FloatArray, gold: IntArray) -> FloatArray:
    """Compute the Brier score of each question, shape (N,), in [0, 2] (Brier 1950)."""
    return _row_sum((probs - _is_right(probs.shape[1], gold)) ** 2)


def letter_mass(loglikelihoods: FloatArray) -> float:
    """Compute the mean total probability of a question's letters, in [0, 1].

    A low value means that the model would answer with something other than a letter.

    Args:
        loglikelihoods: Shape (N, K), before any softmax over the letters; NaN where the letter is
            absent.
    """
    return float(np.mean(_row_sum(np.exp(loglikelihoods))))
