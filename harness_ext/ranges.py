"""Bound the metrics of questions some of whose letters have a probability that is only known to be below a bound.

A server shows the most likely tokens alone. Of a letter beyond them, the largest probability that it can have is known:
its log-likelihood here is that bound, and its probability is anything between 0 and the bound. Each range encloses the
metric over all such probabilities, the letters being free of each other. Ranges of the accuracy (ties apart), the NLL
and the letter mass are the smallest ones; those of the ECEs and the Brier score can be wider.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness_ext.binning import Edge, FloatArray, IntArray, bin_index
from harness_ext.calibration import brier_rows, letter_log_softmax, letter_mass, top

BoolArray = NDArray[np.bool_]
Range = tuple[float, float]


def log_prob_ranges(
    loglikelihoods: FloatArray, unseen: BoolArray, temperature: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Bound the log-probability of each letter over its question's letters.

    Args:
        loglikelihoods: Of letters, of unseen ones the largest that they can have; shape (N, K), NaN where a question
            lacks the letter.
        unseen: Which letters are unseen, shape (N, K).
        temperature: T > 0, by which the log-likelihoods are divided first.

    Returns:
        The lowest and the highest log-probabilities, shape (N, K), NaN kept. Where no letter of a question is unseen,
        both are those of :func:`harness_ext.calibration.letter_log_softmax`.

    Example:
        >>> low, high = log_prob_ranges(np.log([[0.6, 0.2, 0.2]]), np.array([[False, False, True]]))
        >>> np.exp(low).round(3).tolist(), np.exp(high).round(3).tolist()
        ([[0.6, 0.2, 0.0]], [[0.75, 0.25, 0.2]])
    """
    exact = letter_log_softmax(loglikelihoods, temperature)
    cut = unseen.any(axis=1, keepdims=True)
    # A letter is least likely where the unseen ones are at their bounds, and likeliest where they are at 0.
    low = np.where(unseen, -np.inf, exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Rounding must not lift a lower end above its upper one.
        seen = np.minimum(np.log(np.nansum(np.exp(low), axis=1, keepdims=True)), 0.0)
        high = np.where(unseen, -np.logaddexp(0.0, seen - exact), np.minimum(exact - seen, 0.0))
    return np.where(cut, low, exact), np.where(cut, high, exact)


def metric_ranges(
    loglikelihoods: FloatArray,
    unseen: BoolArray,
    gold: IntArray,
    temperature: float = 1.0,
    bins: Sequence[int] = (10,),
    edge: Edge = "left",
) -> dict[str, Range]:
    """Bound each metric over all probabilities that the unseen letters can have.

    Args:
        loglikelihoods: As in :func:`log_prob_ranges`.
        unseen: As in :func:`log_prob_ranges`.
        gold: Index of the right letter, shape (N,).
        temperature: As in :func:`log_prob_ranges`.
        bins: Numbers of equal-width bins.
        edge: See :func:`harness_ext.binning.bin_index`.

    Returns:
        The least and the greatest value of ``acc``, ``nll``, ``brier``, ``letter_mass``, and for each number of bins M
        of ``conf_ece_M`` and ``cw_ece_M``. The NLL has no greatest value (infinity) where a right letter is unseen.
    """
    low, high = log_prob_ranges(loglikelihoods, unseen, temperature)
    probs = np.exp(low), np.exp(high)
    right = _right(loglikelihoods, unseen, gold)
    shown = letter_mass(np.where(unseen, -np.inf, loglikelihoods))
    found = {
        "acc": (float(right[0].mean()), float(right[1].mean())),
        "nll": nll_range(loglikelihoods, unseen, gold, temperature),
        "brier": _brier_range(*probs, gold),
        "letter_mass": (shown, max(shown, min(1.0, letter_mass(loglikelihoods)))),
    }
    for count in bins:
        found[f"conf_ece_{count}"] = _conf_ece_range(probs, right, count, edge)
        found[f"cw_ece_{count}"] = _cw_ece_range(probs, gold, count, edge)
    return found


def nll_range(loglikelihoods: FloatArray, unseen: BoolArray, gold: IntArray, temperature: float = 1.0) -> Range:
    """Bound the NLL alone; arguments as for :func:`metric_ranges`."""
    low, high = log_prob_ranges(loglikelihoods, unseen, temperature)
    rows = np.arange(len(gold))
    return float(-np.mean(high[rows, gold])), float(-np.mean(low[rows, gold]))


def conf_ece_range(
    loglikelihoods: FloatArray, unseen: BoolArray, gold: IntArray, temperature: float = 1.0, bins: int = 10
) -> Range:
    """Bound the conf-ECE alone; arguments as for :func:`metric_ranges`."""
    low, high = log_prob_ranges(loglikelihoods, unseen, temperature)
    return _conf_ece_range((np.exp(low), np.exp(high)), _right(loglikelihoods, unseen, gold), bins, "left")


def _right(loglikelihoods: FloatArray, unseen: BoolArray, gold: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return whether each question is answered right for sure, and whether it can be; 0 or 1, both of shape (N,)."""
    predicted = top(loglikelihoods)[1] == gold
    least = np.where(np.isnan(loglikelihoods) | unseen, -np.inf, loglikelihoods)
    others = [np.delete(least, letter, axis=1).max(axis=1) for letter in range(least.shape[1])]
    can_be = loglikelihoods >= np.stack(others, axis=1)
    is_gold = np.arange(loglikelihoods.shape[1]) == gold[:, None]
    cut = unseen.any(axis=1)
    sure = np.where(cut, ~(can_be & ~is_gold).any(axis=1), predicted)
    possible = np.where(cut, (can_be & is_gold).any(axis=1), predicted)
    return sure.astype(np.float64), possible.astype(np.float64)


def _brier_range(low: FloatArray, high: FloatArray, gold: IntArray) -> Range:
    is_gold = np.arange(low.shape[1]) == gold[:, None]
    nearest, farthest = np.where(is_gold, high, low), np.where(is_gold, low, high)
    return float(brier_rows(nearest, gold).mean()), float(np.minimum(brier_rows(farthest, gold), 2.0).mean())


def _conf_ece_range(
    probs: tuple[FloatArray, FloatArray], right: tuple[FloatArray, FloatArray], bins: int, edge: Edge
) -> Range:
    low, high = (top(each)[0] for each in probs)
    letters = (~np.isnan(probs[0])).sum(axis=1)
    # The likeliest of K letters has at least 1/K; where all are seen, both ends are one value already.
    low = np.where(low == high, low, np.maximum(low, 1 / letters))
    return _ece_range((low, high), right, bins, edge)


def _cw_ece_range(probs: tuple[FloatArray, FloatArray], gold: IntArray, bins: int, edge: Edge) -> Range:
    ends = []
    for letter in range(probs[0].shape[1]):
        has = ~np.isnan(probs[0][:, letter])
        if has.any():
            right = (gold[has] == letter).astype(np.float64)
            ends.append(_ece_range((probs[0][has, letter], probs[1][has, letter]), (right, right), bins, edge))
    least, most = np.mean(ends, axis=0).tolist()
    return least, most


def _ece_range(
    probs: tuple[FloatArray, FloatArray], right: tuple[FloatArray, FloatArray], bins: int, edge: Edge
) -> Range:
    """Bound ``1/N sum_m |sum of right - probability in bin m|``, given both ends of each question's two values.

    A question whose two ends lie in one bin adds a number between two ends to that bin's sum. Any other adds to the sum
    of one bin, whichever it is, at most its largest gap. No ECE is below the gap between the two means.
    """
    # Rounding can lift a probability above 1.
    first, last = (bin_index(np.minimum(each, 1.0), bins, edge) for each in probs)
    sure, gaps = first == last, (right[0] - probs[1], right[1] - probs[0])
    low, high = (np.bincount(first[sure], gap[sure], bins).astype(np.float64) for gap in gaps)
    loose = np.maximum(np.abs(gaps[0]), np.abs(gaps[1]))[~sure].sum()
    least = max(_distance(low, high).sum() - loose, _distance(gaps[0].sum(), gaps[1].sum()), 0.0) / len(first)
    most = (np.maximum(np.abs(low), np.abs(high)).sum() + loose) / len(first)
    # Sums in two orders differ in their last digit.
    return float(min(least, most)), float(most)


def _distance(low: FloatArray | float, high: FloatArray | float) -> FloatArray:
    """Return how far 0 is from each interval."""
    return np.maximum(np.maximum(low, -np.asarray(high)), 0.0)
