"""95 % intervals: of an ECE, and of the difference between two models on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness_ext.calibration import BinGaps
from harness_ext.debiasing import (
    debias,
    largest_difference,
    resampling_covariance,
    side_by_side,
    standardize,
    unseen_variance,
)
from harness_ext.errors import UserError

#: Standard normal quantile of a 95 % interval.
Z = 1.959963984540054
DRAWS = 2000
SEED = 0
#: Number of resamples per matrix product; with more, 100,000 questions would not fit in the cache.
BATCH = 16
#: Part of ``1 - level`` by which noise alone may lift the lower end of an ECE above its truth; the rest is left for the
#: debiased lower end.
NOISE_SHARE = 0.9


class Interval(NamedTuple):
    """Hold an estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


def ece_interval(gaps: BinGaps, level: float = 0.95, draws: int = DRAWS, seed: int = SEED) -> Interval:
    """Compute a bias-aware interval of an ECE.

    An ECE is a sum of absolute bin gaps, so noise only adds to it. The interval is of a debiased
    sum instead (see :func:`harness_ext.debiasing.debias`), widened by the bias that may be left. The estimate is
    the plain ECE. It may lie above the debiased interval, which is then extended to hold it.

    Noise cannot raise the ECE by more than the noise's own sum of absolute values. That is a second
    lower end, the higher one for models near calibration. It takes most of ``1 - level``: there the
    upper end, never below the plain ECE, is above the truth in all but rare samples.

    Args:
        gaps: The cells, from ``confidence_gaps`` or ``classwise_gaps``.
        level: Coverage aimed at, in (0, 1).
        draws: Draws of the noise.
        seed: Seed of the draws; the same input gives the same interval.

    Returns:
        The ECE and both ends, within [0, 1]. One question alone gives [0, 1].
    """
    sums, estimate = gaps.sums(), gaps.ece()
    if len(gaps.cell) < 2:
        return Interval(estimate, 0.0, 1.0)
    covariance = resampling_covariance(gaps, sums) + np.diag(unseen_variance(gaps, sums))
    cells = standardize(sums, covariance, gaps.weight, draws, seed)
    low, high = map(float, debias(cells).ends(level))
    raised = float(np.quantile(np.abs(cells.noise) @ cells.scale, 1 - NOISE_SHARE * (1 - level)))
    return Interval(estimate, min(estimate, max(0.0, low, estimate - raised)), max(estimate, min(1.0, high)))


def ece_difference_interval(
    a: BinGaps, b: BinGaps, level: float = 0.95, draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Compute a bias-aware interval of the ECE of ``b`` minus that of ``a``, on the same questions.

    The basic bootstrap fails here: the upward biases of two ECEs cancel only where both models are
    equally miscalibrated. This interval debiases both (see :func:`harness_ext.debiasing.debias`), with the
    covariance of all their gap sums. It is conservative for cw-ECE, whose many cells each add
    bias that may be left.

    The difference is also at most the sum of the gap sums' absolute differences. For models that
    are almost the same, that bound is the smaller one.

    Args:
        a: The cells of the first model.
        b: The cells of the second, rows in the same order, bins as in ``a``.
        level: Coverage aimed at, in (0, 1).
        draws: Draws of the noise.
        seed: Seed of the draws; the same input gives the same interval.

    Returns:
        The difference b - a of the plain ECEs and both ends. The interval of a - b mirrors it.

    Raises:
        UserError: The two have different numbers of questions or of cells.
    """
    if (len(a.cell), len(a.weight)) != (len(b.cell), len(b.weight)):
        raise UserError(
            f"a paired difference needs the same questions and bins on both sides, got {len(a.cell)} and {len(b.cell)} "
            f"rows, {len(a.weight)} and {len(b.weight)} cells"
        )
    estimate = b.ece() - a.ece()
    if len(a.cell) < 2:
        return Interval(estimate, -1.0, 1.0)
    if estimate < 0:
        # Both orders of the two models then see the same draws.
        _, low, high = ece_difference_interval(b, a, level, draws, seed)
        return Interval(estimate, -high, -low)
    both = side_by_side([a, b])
    sums = both.sums()
    covariance = resampling_covariance(both, sums)
    bound = largest_difference(sums, covariance, b.weight, level, draws, seed)
    covariance += np.diag(unseen_variance(both, sums))
    weight = np.concatenate([-a.weight, b.weight])
    low, high = map(float, debias(standardize(sums, covariance, weight, draws, seed)).ends(level))
    return Interval(estimate, min(estimate, max(low, -bound)), max(estimate, min(high, bound)))


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
        UserError: The two have different numbers of questions.

    Example:
        >>> right = np.ones(50)
        >>> paired_difference(np.mean, (right,), (right,))
        Interval(estimate=0.0, low=0.0, high=0.0)
    """
    rows = len(a[0])
    lengths = {len(array) for array in (*a, *b)}
    if lengths != {rows}:
        raise UserError(f"a paired difference needs the same questions on both sides, got {sorted(lengths)} rows")
    difference = float(statistic(*b) - statistic(*a))
    rng = np.random.default_rng(seed)
    resampled = np.empty(draws)
    for draw in range(draws):
        pick = rng.integers(rows, size=rows)
        resampled[draw] = statistic(*(x[pick] for x in b)) - statistic(*(x[pick] for x in a))
    return basic_interval(difference, resampled)


def resampled_means(values: NDArray[np.float64], draws: int, seed: int | Sequence[int] = SEED) -> NDArray[np.float64]:
    """Return the means of the columns when the same questions are drawn again for all of them.

    Args:
        values: Shape (N, C), one row a question.
        draws: Number of resamples.
        seed: Seed of the resampling; the resamples are those of :func:`paired_difference`.

    Returns:
        Shape (draws, C).
    """
    rows, columns = len(values), values.T
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, BATCH):
        count = np.empty((rows, min(BATCH, draws - start)))
        for column in range(count.shape[1]):
            count[:, column] = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        found.append(columns @ count / rows)
    return np.hstack(found).T


def basic_interval(estimate: float, resampled: NDArray[np.float64]) -> Interval:
    """Return the basic (reflected) bootstrap's 95 % interval: ``2 * estimate - quantile``.

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
