"""Compute the floor of an ECE, what a perfectly calibrated model of the same probabilities would show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import BinGaps, top

SEED = 0
#: Draws of all right answers; fewer where these are more than ``MOST`` answers, but at least ``FEWEST`` draws.
DRAWS, FEWEST, MOST = 1000, 200, 20_000_000
#: Questions, and draws of each, at a time: few enough for a processor's cache.
BLOCK, AT_ONCE = 2048, 32
#: A drawn ECE that is less than the model's by no more than this equals it.
ROUNDING = 1e-12


class Floor(NamedTuple):
    """Hold what a perfectly calibrated model would show, and how often it would show as much as this model."""

    #: Mean of its ECE, exact.
    mean: float
    #: In 95 % of the draws its ECE is at most this.
    high: float
    #: P-value of "calibrated": the share of draws, the model itself counted as one, whose ECE is at least the model's.
    p: float


def ece_floors(probs: FloatArray, eces: Sequence[BinGaps], seed: int = SEED) -> list[Floor]:
    """Compute the ECEs that are left where nothing but noise is.

    An ECE sums absolute gaps, so it is above 0 for a perfectly calibrated model too. Each question's right answer
    is drawn with the model's own probabilities, which makes the model perfectly calibrated, and its ECEs computed
    (consistency resampling, Bröcker & Smith 2007). The mean needs no draws: it is a sum over the cells, and how many
    answers of a cell are right has a known distribution.

    Args:
        probs: Shape (N, K), rows summing to 1 over the question's letters, NaN where the letter is absent.
        eces: Terms of each ECE of these probabilities, see :data:`harness_ext.registry.ECES`.
        seed: Seed of the draws, which all ECEs share; the same input gives the same floors.

    Returns:
        The floor of each ECE.

    Example:
        >>> from harness_ext.calibration import confidence_gaps
        >>> probs = np.array([[0.8, 0.2]])  # right with .8: an ECE of .2; wrong with .2: an ECE of .8
        >>> [floor] = ece_floors(probs, [confidence_gaps(probs, np.array([0]))])
        >>> [round(value, 4) for value in floor]
        [0.32, 0.8, 1.0]
    """
    cells = [_cells(gaps, probs) for gaps in eces]
    drawn = _draw(probs, eces, cells, seed)
    return [
        Floor(
            mean=_mean(probs, gaps, cell),
            high=float(np.quantile(found, 0.95)),
            p=float((1 + np.count_nonzero(found >= gaps.ece() - ROUNDING)) / (1 + len(found))),
        )
        for gaps, cell, found in zip(eces, cells, drawn, strict=True)
    ]


def _cells(gaps: BinGaps, probs: FloatArray) -> IntArray:
    """Return in which cell each letter counts if it is right, shape (N, K); C, the number of cells, if in none."""
    if gaps.cell.shape[1] > 1:
        return np.where(np.isnan(probs), len(gaps.weight), gaps.cell)
    # conf-ECE has one cell a question, in which its prediction counts.
    predicted = top(probs)[1]
    return np.where(np.arange(probs.shape[1]) == predicted[:, None], gaps.cell, len(gaps.weight))


def _draw(probs: FloatArray, eces: Sequence[BinGaps], cells: Sequence[IntArray], seed: int) -> list[FloatArray]:
    """Return each ECE of each draw."""
    rows, letters = probs.shape
    draws = min(DRAWS, max(FEWEST, MOST // rows))
    # A point in [0, 1) lies beyond as many borders as there are letters before its answer.
    borders = np.cumsum(np.nan_to_num(probs), axis=1).T[:-1].copy()
    right = [np.zeros((draws, len(gaps.weight) + 1)) for gaps in eces]
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        inside = slice(start, start + BLOCK)
        tables = [cell[inside].ravel() for cell in cells]
        first = letters * np.arange(len(probs[inside]))
        for draw in range(0, draws, AT_ONCE):
            points = rng.random((min(AT_ONCE, draws - draw), len(first)))
            answer = first + sum((points >= border[inside]).astype(np.int64) for border in borders)
            for table, counts in zip(tables, right, strict=True):
                size = counts.shape[1]
                cell = table[answer] + size * np.arange(len(points))[:, None]
                found = np.bincount(cell.ravel(), minlength=size * len(points))
                counts[draw : draw + len(points)] += found.reshape(len(points), size)
    # What a perfectly calibrated model is right about in each cell, on average: the sum of its probabilities.
    return [
        np.abs(counts[:, :-1] - (gaps.right - gaps.sums())) @ gaps.weight
        for gaps, counts in zip(eces, right, strict=True)
    ]


def _mean(probs: FloatArray, gaps: BinGaps, cells: IntArray) -> float:
    """Return the exact mean of an ECE: cells add up their mean gaps, whether they are independent or not."""
    order = np.argsort(cells, axis=None, kind="stable")
    ends = np.searchsorted(cells.ravel()[order], np.arange(1, len(gaps.weight) + 1))
    inside = np.split(probs.ravel()[order], ends)[:-1]
    return float(gaps.weight @ [mean_gap(each) if len(each) else 0.0 for each in inside])


def mean_gap(chances: FloatArray) -> float:
    """Compute the mean absolute gap between a number of right answers and its own mean.

    Args:
        chances: Shape (n,), n at least 1: with which probability each of the independent answers is right.

    Example:
        >>> round(mean_gap(np.array([0.8])), 9)  # right with .8: a gap of .2; wrong with .2: a gap of .8
        0.32
    """
    right = np.arange(len(chances) + 1)
    return float(np.abs(right - chances.sum()) @ count_distribution(chances)[: len(right)])


def count_distribution(chances: FloatArray) -> FloatArray:
    """Compute how likely each number of right answers is (the Poisson binomial distribution).

    The generating functions of the answers, ``1 - p + p x``, are multiplied two by two.

    Args:
        chances: Shape (n,), the probability of each answer to be right.

    Returns:
        The probabilities of 0, 1, ..., n right answers, and zeros up to a power of two.
    """
    factors = np.stack([1 - chances, chances], axis=1)
    while len(factors) > 1:
        if len(factors) % 2:
            factors = np.vstack([factors, np.eye(1, factors.shape[1])])
        degree = factors.shape[1] - 1
        # Any length above twice the degree serves; three times the degree is a fast one.
        spectrum = np.fft.rfft(factors, 3 * degree)
        factors = np.fft.irfft(spectrum[::2] * spectrum[1::2], 3 * degree)[:, : 2 * degree + 1]
    return factors[0]
