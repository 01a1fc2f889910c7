"""Fit the temperature with the least NLL, and scale each question by one that was fitted on others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from harness_ext.binning import FloatArray, IntArray

#: Bounds of T.
LEAST, MOST = 0.01, 100.0
#: Parts of the questions, of which each is scaled by what was fitted on the others.
FOLDS = 5
#: Error of log T.
PRECISION = 1e-10


def best_temperature(log_probs: FloatArray, gold: IntArray) -> float:
    """Find the T in [``LEAST``, ``MOST``] with the least NLL of ``log_probs / T``.

    The NLL is convex in 1/T. Its slope's zero is found by Newton's steps in log T, and by halving where they leave the
    interval or shrink too slowly.

    Args:
        log_probs: Shape (N, K), natural logarithms, NaN where a question has fewer letters.
        gold: Index of the right letter, shape (N,).

    Returns:
        T; 1 if all letters of each question are equal, so that every T is as good.
    """
    # Letters by questions, so that sums over few letters are fast.
    values = np.ascontiguousarray((log_probs - np.fmax.reduce(log_probs, axis=1, keepdims=True)).T)
    present, values = ~np.isnan(values), np.nan_to_num(values)
    low, high, found, step = np.log(1 / MOST), np.log(1 / LEAST), 0.0, np.inf
    while step > PRECISION:
        slope, curvature = _derivatives(values, present, gold, np.exp(found))
        if slope == 0:
            break
        low, high = (low, found) if slope > 0 else (found, high)
        newton = found - slope / curvature if curvature else np.inf
        near = low < newton < high and abs(newton - found) < step / 2
        step, found = (abs(newton - found), newton) if near else (high - low, (low + high) / 2)
    return float(np.exp(-found))


def _derivatives(values: FloatArray, present: NDArray[np.bool_], gold: IntArray, inverse: float) -> tuple[float, float]:
    """Return first and second derivative of the NLL by log 1/T; values have shape (K, N), at most 0."""
    weight = np.exp(inverse * values) * present
    weight /= weight.sum(axis=0)
    mean = np.einsum("kn,kn->n", weight, values)
    square = np.einsum("kn,kn,kn->n", weight, values, values)
    slope = inverse * float((mean - values[gold, np.arange(len(gold))]).mean())
    return slope, slope + inverse**2 * float((square - mean**2).mean())


def held_out_temperatures(
    log_probs: FloatArray,
    gold: IntArray,
    find: Callable[[FloatArray, IntArray], float] = best_temperature,
    seed: int = 0,
) -> FloatArray:
    """Find for each question the T that is the best for other questions.

    Numbers of the questions that T was fitted on flatter it.

    Args:
        log_probs: Shape (N, K), natural logarithms, NaN where a question has fewer letters.
        gold: Index of the right letter, shape (N,).
        find: Returns the T of questions.
        seed: Of the split into parts.

    Returns:
        Shape (N,); 1 for a question that is alone.
    """
    found = np.ones(len(gold))
    for inside in parts(len(gold), seed) if len(gold) > 1 else ():
        found[inside] = find(log_probs[~inside], gold[~inside])
    return found


def parts(count: int, seed: int) -> list[NDArray[np.bool_]]:
    """Split questions at random into at most ``FOLDS`` parts, as scikit-learn's ``cross_val_predict`` does.

    Args:
        count: N questions.
        seed: Of the split.

    Returns:
        Which questions are inside each part, shape (N,) each.
    """
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    return [fold == part for part in np.unique(fold)]
