"""Define the confidence bins that the harness, the E-step, the report and every ECE share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness_ext.errors import UserError

Edge = Literal["left", "right"]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
#: Up to this many inner edges, comparing with each one is faster than a binary search.
FEW_EDGES = 50
#: With M bins and K letters, the interval of cw-ECE needs memory ~ (M K)^2 and time ~ (M K)^3.
MOST_BINS = 200


@dataclass(frozen=True)
class BinTable:
    """Hold count, accuracy and mean confidence of M bins, each an array of shape (M,)."""

    #: Number of rows in the bin.
    count: IntArray
    #: Mean of ``correct`` over the bin's rows, in [0, 1]; NaN where the bin is empty.
    accuracy: FloatArray
    #: Mean confidence of the bin's rows, in [0, 1]; NaN where the bin is empty.
    confidence: FloatArray


def equal_width_edges(n_bins: int) -> FloatArray:
    """Return the edges i/M of M equal-width bins on [0, 1].

    Each edge is the correctly rounded float64 quotient.

    Args:
        n_bins: M, from 1 to :data:`MOST_BINS`.

    Returns:
        Array of shape (M + 1,) from 0.0 to 1.0.

    Raises:
        UserError: ``n_bins`` is outside that range.
    """
    if not 1 <= n_bins <= MOST_BINS:
        raise UserError(f"the number of bins is {n_bins}; give a number from 1 to {MOST_BINS}")
    return np.arange(n_bins + 1, dtype=np.float64) / n_bins


def equal_mass_edges(values: ArrayLike, n_bins: int) -> FloatArray:
    """Return edges that put the same number of ``values`` in each bin, as far as ties allow.

    Args:
        values: Shape (N,), in [0, 1].
        n_bins: M, at least 1.

    Returns:
        Increasing array of at most M + 1 edges from 0.0 to 1.0; equal quantiles are merged.
    """
    quantiles = np.quantile(np.asarray(values, dtype=np.float64), equal_width_edges(n_bins)[1:-1])
    return np.unique(np.concatenate([[0.0], quantiles, [1.0]]))


def bin_index(values: ArrayLike, n_bins: int | FloatArray, edge: Edge = "left") -> IntArray:
    """Return the index of each value's bin.

    Values are compared with the edges in float64: float32, or multiplying by M, puts 0.3, 0.6,
    0.7 and 0.9 into other bins.

    Args:
        values: Any shape, in [0, 1].
        n_bins: M for equal-width bins, or an array of M + 1 edges.
        edge: "left" for ``[a, b)`` with the last bin closed at 1 (released code of arXiv
            2505.01997), "right" for ``(a, b]`` with the first bin closed at 0 (Guo et al. 2017).

    Returns:
        Integers in [0, M), of the same shape as ``values``.

    Raises:
        UserError: A value is NaN or outside [0, 1], or ``edge`` is not "left" or "right".

    Example:
        >>> bin_index([0.0, 0.3, 0.35, 1.0], 10).tolist()
        [0, 3, 3, 9]
        >>> bin_index([0.0, 0.3, 0.35, 1.0], 10, edge="right").tolist()
        [0, 2, 3, 9]
    """
    values = np.asarray(values, dtype=np.float64)
    if edge not in ("left", "right"):
        raise UserError(f"edge is {edge!r}; give 'left' for [a, b) or 'right' for (a, b]")
    inside = (values >= 0) & (values <= 1)
    if not inside.all():
        row = int(np.argmin(inside.ravel()))
        raise UserError(f"value {values.ravel()[row]!r} at row {row} is not a probability in [0, 1]")
    edges = equal_width_edges(n_bins) if isinstance(n_bins, (int, np.integer)) else n_bins
    # Comparing with the inner edges alone closes the first bin at 0 and the last one at 1.
    inner = edges[1:-1]
    if len(inner) > FEW_EDGES:
        return np.searchsorted(inner, values, side="right" if edge == "left" else "left").astype(np.int64)
    # With few edges, comparing with each one is several times faster than a binary search.
    index = np.zeros_like(values, dtype=np.uint8)
    for border in inner:
        index += values >= border if edge == "left" else values > border
    return index.astype(np.int64)


def bin_table(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int | FloatArray = 10, edge: Edge = "left"
) -> BinTable:
    """Compute count, accuracy and mean confidence of each bin (B_m in arXiv 2505.01997, Eq 19).

    Args:
        confidence: Shape (N,), in [0, 1].
        correct: Shape (N,), 1 where the prediction is right, else 0; frequencies in [0, 1] are
            allowed.
        n_bins: M for equal-width bins, or an array of M + 1 edges.
        edge: See :func:`bin_index`.

    Returns:
        The table of M bins.

    Raises:
        UserError: As :func:`bin_index`.

    Example:
        >>> bin_table([0.25, 0.75, 0.85], [0, 1, 0], 2).accuracy.tolist()
        [0.0, 0.5]
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    index = bin_index(confidence, n_bins, edge)
    size = int(n_bins) if isinstance(n_bins, (int, np.integer)) else len(n_bins) - 1
    count = np.bincount(index, minlength=size)
    with np.errstate(invalid="ignore"):
        return BinTable(
            count.astype(np.int64),
            np.bincount(index, np.asarray(correct, dtype=np.float64), size) / count,
            np.bincount(index, confidence, size) / count,
        )
