"""95 % intervals: of an ECE, and of the difference between two models on the same questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness_ext.calibration import BinGaps
from harness_ext.errors import ScoringError

#: Standard normal quantile of a 95 % interval.
Z = 1.959963984540054
DRAWS = 2000
SEED = 0


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


def ece_interval(gaps: BinGaps, level: float = 0.95, draws: int = DRAWS, seed: int = SEED) -> Interval:
    """Bootstrap interval of an ECE that holds its estimate and still covers where the model is well calibrated.

    An ECE is a sum of absolute bin gaps, so noise only ever adds to it: the usual percentile bootstrap adds that noise
    a second time and never reaches the error of a calibrated model. This is the bootstrap for such functionals of Fang
    & Santos (2019, Inference on directionally differentiable functions): the bin gaps are perturbed with exactly the
    covariance that resampling the questions gives them; a gap clearly away from zero (by more than sqrt(log N) of its
    standard errors) moves the ECE by the perturbation times its sign, any other by the perturbation's size. The upper
    end takes all gaps as clearly away from zero, which can only raise it.

    Args:
        gaps: The cells, from ``confidence_gaps`` or ``classwise_gaps``.
        level: Coverage aimed at, in (0, 1).
        draws: Bootstrap perturbations.
        seed: Seed of the perturbations; the same input gives the same interval.

    Returns:
        The ECE and both ends, within [0, 1]. One question alone gives [0, 1].
    """
    sums, estimate = gaps.sums(), gaps.ece()
    rows = len(gaps.cell)
    if rows < 2:
        return Interval(estimate, 0.0, 1.0)
    covariance = _resampling_covariance(gaps, sums)
    used = np.flatnonzero(np.diag(covariance) > 0)
    covariance, sums, weight = covariance[np.ix_(used, used)], sums[used], gaps.weight[used]
    clear = np.abs(sums) > np.sqrt(np.log(rows) * np.diag(covariance))
    noise = np.random.default_rng(seed).standard_normal((draws, len(used))) @ _root(covariance)
    signed = noise * np.sign(sums)
    tail = 1 - (1 - level) / 2
    down = np.quantile(np.where(clear, signed, np.abs(noise)) @ weight, tail) if len(used) else 0.0
    up = np.quantile(signed @ weight, tail) if len(used) else 0.0
    return Interval(estimate, max(0.0, estimate - max(0.0, down)), min(1.0, estimate + max(0.0, up)))


def _resampling_covariance(gaps: BinGaps, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of the cells' gap sums when the questions are drawn again with replacement; shape (C, C)."""
    cells = len(gaps.weight)
    products = np.zeros((cells, cells))
    width = gaps.cell.shape[1]
    for i in range(width):
        for j in range(i, width):
            pair = gaps.cell[:, i] * cells + gaps.cell[:, j]
            block = np.bincount(pair, gaps.gap[:, i] * gaps.gap[:, j], cells * cells).reshape(cells, cells)
            products += block if i == j else block + block.T
    return products - np.outer(sums, sums) / len(gaps.cell)


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    # Bins that always move together make the matrix singular, which Cholesky refuses.
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def paired_difference(
    statistic: Callable[..., float],
    a: tuple[NDArray, ...],
    b: tuple[NDArray, ...],
    seed: int = SEED,
    draws: int = 1000,
) -> Interval:
    """Interval of ``statistic(*b) - statistic(*a)`` for two models asked the same questions.

    The same questions are drawn for both, so what they share, an ECE's upward bias among it, largely cancels. The
    interval is the basic (reflected) bootstrap's: 2 * difference - quantile.

    Args:
        statistic: Takes the arrays of one model, gives one number.
        a: Arrays of the first model, each with one row a question.
        b: Arrays of the second, rows in the same order.
        seed: Seed of the resampling.
        draws: Number of resamples.

    Returns:
        Difference b - a with its 95 % interval.

    Raises:
        ScoringError: The two have different numbers of questions.

    Example:
        >>> right = np.ones(50)
        >>> paired_difference(np.mean, (right,), (right,))
        Interval(estimate=0.0, low=0.0, high=0.0)
    """
    rows = len(a[0])
    lengths = {len(array) for array in (*a, *b)}
    if lengths != {rows}:
        raise ScoringError(f"a paired difference needs the same questions on both sides, got {sorted(lengths)} rows")
    difference = float(statistic(*b) - statistic(*a))
    rng = np.random.default_rng(seed)
    resampled = np.empty(draws)
    for draw in range(draws):
        pick = rng.integers(rows, size=rows)
        resampled[draw] = statistic(*(x[pick] for x in b)) - statistic(*(x[pick] for x in a))
    return basic_interval(difference, resampled)


def basic_interval(estimate: float, resampled: NDArray[np.float64]) -> Interval:
    """The basic (reflected) bootstrap's 95 % interval: ``2 * estimate - quantile``.

    Args:
        estimate: The number itself.
        resampled: The same of each resample, shape (draws,).
    """
    low, high = 2 * estimate - np.quantile(resampled, [0.975, 0.025])
    return Interval(estimate, float(low), float(high))


def wilson(hits: float, rows: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), which stays within [0, 1] and covers near its ends too.

    Args:
        hits: Of ``rows``, at most as many.
        rows: At least 1.

    Returns:
        Its lower and upper end.

    Example:
        >>> [round(end, 4) for end in wilson(8, 10)]
        [0.4902, 0.9433]
    """
    share = hits / rows
    center = share + Z**2 / (2 * rows)
    spread = Z * float(np.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2)))
    scale = 1 + Z**2 / rows
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
