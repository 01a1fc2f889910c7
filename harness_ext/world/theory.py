"""Measure what section 4 of arXiv 2505.01997 bounds, where the true probabilities p* are known.

An answer is drawn from p*, so each quantity has two readings. *Drawn* is on the answers as they fell; *expected* is
over all answers that could have fallen, where a question counts p* of the option that is predicted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import classwise_gaps, confidence_gaps, top
from harness_ext.errors import UserError
from harness_ext.intervals import Interval, Z


def true_calibration_error(probs: ArrayLike, p_star: ArrayLike) -> float:
    """Compute the true calibration error (arXiv 2505.01997, Eq 3).

    ``TCE = mean_n ||p_n - p*_n||_1``.

    Args:
        probs: The model's probabilities of the options, shape (N, K), NaN where the letter is absent.
        p_star: The true probabilities, shape (N, K), NaN in the same places.

    Returns:
        A number in [0, 2]. Unlike an ECE it is 0 only if every single probability is right.

    Raises:
        UserError: The shapes or the absent letters differ, or are not (N, K) with N at least 1.

    Example:
        >>> round(true_calibration_error([[0.9, 0.1]], [[0.6, 0.4]]), 12)
        0.6
    """
    return float(_distances(probs, p_star).mean())


def _distances(probs: ArrayLike, p_star: ArrayLike) -> FloatArray:
    p, q = np.asarray(probs, dtype=np.float64), np.asarray(p_star, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2 or not len(p):
        raise UserError(f"probabilities have shape {p.shape} and p* {q.shape}; give the same shape (N, K) for both")
    if len(other := np.flatnonzero((np.isnan(p) != np.isnan(q)).any(axis=1))):
        raise UserError(f"row {other[0]} has other letters in p* than in the probabilities; give p* of each letter")
    return np.asarray(np.nansum(np.abs(p - q), axis=1))


class Theory(NamedTuple):
    """Hold the quantities of the theorems for one model; acc* is p*'s own accuracy."""

    #: True calibration error, in [0, 2], with its normal interval over the questions.
    tce: Interval
    #: Accuracy and acc*, expected over the answers. No model has more than this acc*.
    acc: float
    acc_star: float
    #: conf-ECE and cw-ECE with 10 bins, expected over the answers: without the noise of the draw.
    conf_ece: float
    cw_ece: float
    #: acc* on the drawn answers, and the drawn accuracy less it, with its paired normal interval.
    drawn_acc_star: float
    above: Interval
    #: Number of questions that exactly one of model and p* gets right, and the smallest ``||p - p*||_1`` among them
    #: (c of Theorem 4.5); None without such a question, where both accuracies are the same.
    one_right: int
    c: float | None

    @property
    def lower(self) -> float:
        """Return ``c |acc - acc*|`` on the drawn answers (Theorem 4.5)."""
        return 0.0 if self.c is None else self.c * abs(self.above.estimate)

    @property
    def upper(self) -> float:
        """Return ``2 |acc - acc*|`` on the drawn answers: some model of this accuracy has no more TCE (Theorem 4.4)."""
        return 2 * abs(self.above.estimate)


def measure_theory(probs: FloatArray, p_star: FloatArray, gold: IntArray, n_bins: int = 10) -> Theory:
    """Measure TCE, acc* and the constants of the theorems.

    Args:
        probs: The model's probabilities, shape (N, K), NaN where the letter is absent.
        p_star: The true probabilities, shape (N, K).
        gold: Index of the drawn answer, shape (N,).
        n_bins: Bins of the ECEs.

    Returns:
        The quantities; see :class:`Theory`.

    Raises:
        UserError: As :func:`true_calibration_error`.

    Example:
        >>> p, p_star = np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.7, 0.3], [0.6, 0.4]])
        >>> found = measure_theory(p, p_star, np.array([0, 0]))
        >>> round(found.tce.estimate, 12), round(found.acc, 12), round(found.acc_star, 12), found.one_right
        (0.4, 0.55, 0.65, 1)
    """
    distances, rows = _distances(probs, p_star), np.arange(len(gold))
    confidence, predicted = top(probs)
    best, best_letter = top(p_star)
    said = p_star[rows, predicted]
    right, best_right = predicted == gold, best_letter == gold
    apart = distances[right != best_right]
    # The answers' own noise leaves an ECE where each answer counts as the chance that it had.
    confidence_cells = confidence_gaps(probs, gold, n_bins)._replace(gap=(said - confidence)[:, None])
    letter_cells = classwise_gaps(probs, gold, n_bins)._replace(gap=np.nan_to_num(p_star - probs))
    return Theory(
        tce=_mean(distances, 0.0, 2.0),
        acc=float(said.mean()),
        acc_star=float(best.mean()),
        conf_ece=confidence_cells.ece(),
        cw_ece=letter_cells.ece(),
        drawn_acc_star=float(best_right.mean()),
        above=_mean(right.astype(np.float64) - best_right, -1.0, 1.0),
        one_right=len(apart),
        c=float(apart.min()) if len(apart) else None,
    )


def _mean(values: FloatArray, least: float, most: float) -> Interval:
    """Return the mean of values in [least, most] with its normal interval; one value alone tells nothing."""
    mean = float(values.mean())
    half = Z * float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else np.inf
    return Interval(mean, max(least, mean - half), min(most, mean + half))
