"""The E-step's arithmetic: bin accuracies to a target distribution over each question's letters (paper Eq 6)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from calibtune.errors import WorkFailed
from harness_ext.binning import BinTable, FloatArray, bin_index
from harness_ext.calibration import top

Mapping = Literal["simplified", "general"]
#: alpha of the general mapping; Eqs 12-13 leave it free.
ALPHA = 0.1


def bin_accuracy(table: BinTable, confidence: FloatArray) -> FloatArray:
    """acc(B_m) of the bin that each confidence falls in, shape (N,).

    An empty bin has no accuracy (it can be reached where the bins are taken on other rows): its questions take that
    of the nearest bin that has one, the lower of two at the same distance.

    Args:
        table: The E-step's bins, equal-width and closed on the left.
        confidence: Shape (N,), in [0, 1].

    Raises:
        WorkFailed: All bins are empty.
    """
    filled = np.flatnonzero(table.count)
    if not len(filled):
        raise WorkFailed("the E-step has no questions to take bins from; raise --held-out or use --e-step-rows train")
    bins = np.arange(len(table.count))
    nearest = filled[np.abs(bins[:, None] - filled).argmin(axis=1)]
    return table.accuracy[nearest][bin_index(confidence, len(table.count))]


def target_probs(probs: FloatArray, accuracy: FloatArray, mapping: Mapping = "simplified") -> FloatArray:
    """The target q of each question (paper Eq 6 and appendix A.4).

    The most probable letter takes the bin's accuracy; the others share the rest in the order of their probabilities,
    through tanh(gamma p). The simplified mapping has alpha = beta (Eqs 9-11), the general one a fixed alpha (Eqs 12,
    13), lowered where beta would fall below 0.

    q sums to 1 always. It keeps the order of p where ``alpha tanh(gamma p_2) + beta <= accuracy``; for the simplified
    mapping ``accuracy >= 2 / (K + 2)`` suffices. Below that the first letter may fall behind the others: its bin is
    right less often than such an order could say. At accuracy 1 the first letter takes all; where the second letter's
    probability is 0, the others share evenly.

    Args:
        probs: p, shape (N, K), NaN where a question has fewer letters.
        accuracy: acc(B_m) of each question, shape (N,), in [0, 1].
        mapping: Which of the two.

    Returns:
        q, shape (N, K), NaN where p is.

    Example:
        >>> target_probs(np.array([[0.7, 0.3]]), np.array([0.6])).round(6).tolist()
        [[0.6, 0.4]]
    """
    present = ~np.isnan(probs)
    count = present.sum(axis=1)
    first = np.arange(probs.shape[1]) == top(probs)[1][:, None]
    others = np.where(present & ~first, probs, 0.0)
    rest = 1.0 - accuracy
    second = others.max(axis=1)
    # gamma p_i with the quotient p_i / p_2 first: gamma alone overflows where p_2 is tiny.
    share = np.divide(others, second[:, None], out=np.zeros_like(others), where=second[:, None] > 0)
    gamma_p = np.divide(np.log(3.0) * share, rest[:, None], out=np.zeros_like(share), where=rest[:, None] > 0)
    squashed = np.tanh(gamma_p)
    total = squashed.sum(axis=1)
    if mapping == "simplified":
        alpha = beta = rest / (total + count - 1)
    else:
        alpha = np.minimum(ALPHA, np.divide(rest, total, out=np.zeros_like(rest), where=total > 0))
        beta = (rest - alpha * total) / (count - 1)
    q = np.where(first, accuracy[:, None], alpha[:, None] * squashed + beta[:, None])
    return np.where(present, q, np.nan)
