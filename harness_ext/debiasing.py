"""Sums of absolute gaps without their upward bias: what the intervals of an ECE are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness_ext.binning import FloatArray
from harness_ext.calibration import BinGaps

#: Depth of the dip that debiases an absolute value. This one makes the largest bias of either sign the same.
DEPTH = 0.75
#: How far, in standard errors, a cell's mean may lie from its estimate when its bias is bounded. Over several cells
#: such bounds add up to more than the bias; tests/benchmarks/interval_coverage.py measures what that leaves.
WINDOW = 1.0
#: Rows that a cell's share of right answers is drawn to its mean probability by.
PRIOR = 6


class Cells(NamedTuple):
    """Gap sums in units of their standard errors."""

    #: Shape (C,), the cells that vary.
    x: FloatArray
    #: Shape (C,): weight times standard error; the ECE is ``scale @ abs(x)``. Or (C, P), for P sums of the same cells.
    scale: FloatArray
    #: Shape (draws, C): normal noise with the cells' correlation.
    noise: FloatArray


class Debiased(NamedTuple):
    """Hold debiased sums, the bias that may be left in each, and draws of their noise.

    One sum has numbers, P sums have arrays of shape (P,).
    """

    value: FloatArray
    #: Least and largest bias that may be left.
    least: FloatArray
    most: FloatArray
    #: Shape (draws,) or (draws, P).
    noise: FloatArray

    def ends(self, level: float) -> tuple[FloatArray, FloatArray]:
        """Compute both ends of each sum's interval."""
        half = np.quantile(np.abs(self.noise), level, axis=0)
        return self.value - self.most - half, self.value - self.least + half


def side_by_side(models: Sequence[BinGaps]) -> BinGaps:
    """Return the cells of several models on the same questions as those of one."""
    starts = np.cumsum([0, *(len(model.weight) for model in models[:-1])])
    return BinGaps(
        np.hstack([model.cell + start for model, start in zip(models, starts, strict=True)]),
        np.hstack([model.gap for model in models]),
        *(np.concatenate([getattr(model, name) for model in models]) for name in ("weight", "rows", "right")),
    )


def standardize(
    sums: FloatArray, covariance: FloatArray, weight: FloatArray, draws: int, seed: int | Sequence[int]
) -> Cells:
    """Put gap sums in units of their standard errors and draw their noise.

    The noise is correlated, since bins, letters and models share questions.
    """
    weighs = weight.reshape(len(weight), -1).any(axis=1)
    used = np.flatnonzero((np.diag(covariance) > 0) & weighs)
    error = np.sqrt(np.diag(covariance)[used])
    noise = draw_noise(covariance[np.ix_(used, used)] / np.outer(error, error), draws, seed)
    return Cells(sums[used] / error, (weight[used].T * error).T, noise)


def debias(cells: Cells) -> Debiased:
    """Debias ``scale @ abs(m)``; scales may be negative.

    A gap sum is x = m + noise. ``abs(x)`` estimates ``abs(m)`` with a bias of up to .8, at m = 0.
    :func:`debiased` keeps the bias within .27 of zero at little more variance. Its bias and its
    noise are known functions of m. So each end of an interval is moved by the largest bias, and the
    noise is taken as large as it is, anywhere within ``WINDOW`` standard errors of x. That is a
    bias-aware interval (Armstrong & Kolesar 2018; Ignatiadis & Wager 2022). Far from zero it is the
    usual normal one.
    """
    x, scale, noise = cells
    least, most, mean, inflation = (np.interp(np.abs(x), MEANS, column) for column in TABLE)
    drawn = debiased(x + noise) - np.abs(x) - mean
    up, down = np.maximum(scale, 0), np.minimum(scale, 0)
    return Debiased(debiased(x) @ scale, least @ up + most @ down, most @ up + least @ down, drawn * inflation @ scale)


def debiased(x: FloatArray) -> FloatArray:
    """Estimate ``abs(m)`` from x = m + standard normal noise."""
    return np.abs(x) - DEPTH * np.exp(-(x**2) / 2)


def _table(means: FloatArray) -> tuple[FloatArray, ...]:
    """Tabulate :func:`debiased` over values of ``abs(x)``.

    Returns:
        Least and largest bias at means within ``WINDOW`` of each value, the bias at the value
        itself, and how many times the standard deviation there is the largest one within ``WINDOW``.
    """
    noise = np.linspace(-8, 8, 1601)
    density = np.exp(-(noise**2) / 2)
    density /= density.sum()
    values = debiased(means[:, None] + noise)
    center = values @ density
    bias, deviation = center - means, np.sqrt(values**2 @ density - center**2)
    near = np.abs(means - means[:, None]) <= WINDOW
    least, most = np.where(near, bias, np.inf).min(axis=1), np.where(near, bias, -np.inf).max(axis=1)
    return least, most, bias, np.where(near, deviation, 0).max(axis=1) / deviation


#: Values of ``abs(x)``; beyond them there is no bias, and the noise is standard normal.
MEANS = np.linspace(0, 8, 161)
TABLE = _table(MEANS)


def largest_difference(
    sums: FloatArray, covariance: FloatArray, weight: FloatArray, level: float, draws: int, seed: int
) -> float:
    """Compute an upper bound of ``weight @ abs(difference of the two halves' means)``."""
    cells = len(weight)
    contrast = np.hstack([-np.eye(cells), np.eye(cells)])
    noise = np.abs(draw_noise(contrast @ covariance @ contrast.T, draws, seed))
    return float(np.abs(contrast @ sums) @ weight + np.quantile(noise @ weight, level))


def unseen_variance(gaps: BinGaps, sums: FloatArray) -> FloatArray:
    """Compute what resampling leaves out of each cell's variance where it holds few rows, shape (C,).

    Of 20 rows that are all right, resampling shows no variance. Here the share of right ones is
    drawn to the cell's mean probability by ``PRIOR`` rows, and to a half by two (Laplace).
    What is added stays bounded as rows grow. Cells without rows add nothing.
    """
    rows = np.maximum(gaps.rows, 1)
    share = gaps.right / rows
    said = (gaps.right - sums) / rows
    drawn = (gaps.right + PRIOR * said + 1) / (gaps.rows + PRIOR + 2)
    added = gaps.rows * np.maximum(0.0, drawn * (1 - drawn) - share * (1 - share))
    return added.astype(np.float64)


def resampling_covariance(gaps: BinGaps, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of the cells' gap sums when the questions are drawn again with replacement; shape (C, C)."""
    cells = len(gaps.weight)
    products = np.zeros((cells, cells))
    # A column has few of all cells: those of a letter or a model.
    first, size = gaps.cell.min(axis=0), np.ptp(gaps.cell, axis=0) + 1
    spans = [slice(start, start + count) for start, count in zip(first, size, strict=True)]
    for i, rows in enumerate(spans):
        for j, columns in enumerate(spans[i:], start=i):
            pair = (gaps.cell[:, i] - first[i]) * size[j] + gaps.cell[:, j] - first[j]
            found = np.bincount(pair, gaps.gap[:, i] * gaps.gap[:, j], size[i] * size[j]).reshape(size[i], size[j])
            products[rows, columns] += found
            if i != j:
                products[columns, rows] += found.T
    return products - np.outer(sums, sums) / len(gaps.cell)


def draw_noise(covariance: FloatArray, draws: int, seed: int | Sequence[int]) -> FloatArray:
    """Draw normal noise with this covariance, shape (draws, C)."""
    # Bins that always move together make the matrix singular, which Cholesky refuses.
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    size = draws * len(covariance)
    started = tuple(seed) if isinstance(seed, Sequence) else seed
    return _normals(started, size.bit_length())[:size].reshape(draws, len(covariance)) @ root


@functools.lru_cache(maxsize=8)
def _normals(seed: int | tuple[int, ...], bits: int) -> FloatArray:
    """Draw 2 ** bits standard normal numbers; the same ones serve each model, so they are drawn once."""
    return np.random.default_rng(seed).standard_normal(2**bits)
