"""The E-step's arithmetic: bin accuracies to a target distribution over each question's letters (paper Eq 6)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from calibtune.errors import WorkFailed
from harness_ext.binning import BinTable, FloatArray, equal_width_edges

Mapping = Literal["simplified", "general"]
#: alpha of the general mapping; Eqs 12-13 leave it free.
ALPHA = 0.1


def bin_accuracies(table: BinTable) -> FloatArray:
    """acc(B_m) of each bin, shape (M,).

    An empty bin has no accuracy (it can be reached where the bins are taken on other rows): its questions take that
    of the nearest bin that has one, the lower of two at the same distance.

    Args:
        table: The E-step's bins, equal-width and closed on the left.

    Raises:
        WorkFailed: All bins are empty.

    Example:
        >>> from harness_ext.binning import bin_table
        >>> bin_accuracies(bin_table([0.1, 0.9], [0, 1], 5)).tolist()
        [0.0, 0.0, 0.0, 1.0, 1.0]
    """
    filled = np.flatnonzero(table.count)
    if not len(filled):
        raise WorkFailed("the E-step has no questions to take bins from; raise --held-out or use --e-step-rows train")
    bins = np.arange(len(table.count))
    accuracy: FloatArray = table.accuracy[filled[np.abs(bins[:, None] - filled).argmin(axis=1)]]
    return accuracy


def bins_tensor(table: BinTable) -> torch.Tensor:
    """What a forward pass needs of the bins to set targets: their lower edges and accuracies, shape (2, M), float64.

    Raises:
        WorkFailed: See :func:`bin_accuracies`.
    """
    return torch.tensor(np.stack([equal_width_edges(len(table.count))[:-1], bin_accuracies(table)]))


def bin_of(confidence: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """:func:`harness_ext.binning.bin_index` of confidences on the accelerator, shape (N,), waiting for nothing.

    Args:
        confidence: Float64, shape (N,), in [0, 1].
        bins: See :func:`bins_tensor`.
    """
    return (confidence[:, None] >= bins[0]).sum(1) - 1


def target_probs(probs: torch.Tensor, accuracy: torch.Tensor, mapping: Mapping = "simplified") -> torch.Tensor:
    """The target q of each question (paper Eq 6 and appendix A.4).

    The most probable letter takes the bin's accuracy; the others share the rest in the order of their probabilities,
    through tanh(gamma p). The simplified mapping has alpha = beta (Eqs 9-11), the general one a fixed alpha (Eqs 12,
    13), lowered where beta would fall below 0.

    q sums to 1 always. It keeps the order of p where ``alpha tanh(gamma p_2) + beta <= accuracy``; for the simplified
    mapping ``accuracy >= 2 / (K + 2)`` suffices. Below that the first letter may fall behind the others: its bin is
    right less often than such an order could say. At accuracy 1 the first letter takes all; where the second letter's
    probability is 0, the others share evenly.

    Args:
        probs: p, float64, shape (N, K), NaN where a question has fewer letters.
        accuracy: acc(B_m) of each question, float64, shape (N,), in [0, 1].
        mapping: Which of the two.

    Returns:
        q, shape (N, K), NaN where p is.

    Example:
        >>> target_probs(torch.tensor([[0.75, 0.25]]), torch.tensor([0.5])).tolist()
        [[0.5, 0.5]]
    """
    present = ~probs.isnan()
    count = present.sum(1)
    # The lowest index of several at the top, as everywhere.
    first = torch.arange(probs.shape[1], device=probs.device) == probs.nan_to_num(-1.0).argmax(1)[:, None]
    others = torch.where(present & ~first, probs, 0.0)
    rest = 1.0 - accuracy
    # gamma p_i with the quotient p_i / p_2 first: gamma alone overflows where p_2 is tiny.
    share = _quotient(others, others.amax(1)[:, None])
    squashed = (_quotient(share, rest[:, None]) * math.log(3.0)).tanh()
    total = squashed.sum(1)
    if mapping == "simplified":
        alpha = beta = rest / (total + count - 1)
    else:
        alpha = _quotient(rest, total).clamp(max=ALPHA)
        beta = (rest - alpha * total) / (count - 1)
    q = torch.where(first, accuracy[:, None], alpha[:, None] * squashed + beta[:, None])
    return torch.where(present, q, torch.nan)


def _quotient(over: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """0 where it would divide by 0."""
    return torch.where(under > 0, over / under, 0.0)
