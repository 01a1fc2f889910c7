"""Put questions with different numbers of options into one array."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from harness_ext.binning import FloatArray


def ragged(rows: Iterable[Sequence[float]]) -> FloatArray:
    """Return rows of different lengths as one array.

    Args:
        rows: N rows, at least one; the longest has K values.

    Returns:
        Shape (N, K), float64, with NaN after the end of shorter rows.

    Example:
        >>> ragged([[0.5, 0.5], [0.2, 0.3, 0.5]]).tolist()
        [[0.5, 0.5, nan], [0.2, 0.3, 0.5]]
    """
    rows = list(rows)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    found = np.full((len(rows), lengths.max()), np.nan)
    present = np.arange(found.shape[1]) < lengths[:, None]
    found[present] = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.float64, count=lengths.sum())
    return found
