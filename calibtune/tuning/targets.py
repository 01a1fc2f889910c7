"""Compute the E-step's targets from bin accuracies (arXiv 2505.01997, Eq 6 and appendix A.4)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from calibtune.errors import WorkFailed
from harness_ext.binning import BinTable, FloatArray, bin_index
from harness_ext.calibration import letter_log_softmax, top

Mapping = Literal["simplified", "general"]
#: alpha of the general mapping, which Eqs 12-13 of the paper leave free.
ALPHA = 0.1


def bin_accuracies(table: BinTable) -> FloatArray:
    """Return acc(B_m) of each bin, shape (M,), in [0, 1].

    An empty bin takes the accuracy of the nearest non-empty bin, the lower one if two are equally
    near. A training question can fall into an empty bin, if the bins come from held-out questions.

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
        raise WorkFailed("the E-step has no questions for its bins; raise --held-out or use --e-step-rows train")
    bins = np.arange(len(table.count))
    accuracy: FloatArray = table.accuracy[filled[np.abs(bins[:, None] - filled).argmin(axis=1)]]
    return accuracy


def epoch_targets(scores: FloatArray, accuracy: FloatArray, mapping: Mapping = "simplified") -> FloatArray:
    """Compute the target of each question from its scores and the accuracy of its bin.

    Args:
        scores: Letter log-likelihoods, shape (N, K), NaN where the letter is absent.
        accuracy: acc(B_m) of each bin, shape (M,); see :func:`bin_accuracies`.
        mapping: "simplified" or "general"; see :func:`target_probs`.

    Returns:
        q, shape (N, K), 0 where the letter is absent.
    """
    probs = np.exp(letter_log_softmax(scores))
    bins = bin_index(top(probs)[0], len(accuracy))
    return np.nan_to_num(target_probs(probs, accuracy[bins], mapping))


def target_probs(probs: FloatArray, accuracy: FloatArray, mapping: Mapping = "simplified") -> FloatArray:
    """Compute the target q of each question (arXiv 2505.01997, Eq 6 and appendix A.4).

    The most probable letter gets q_1 = accuracy. The other letters get ``alpha tanh(gamma p_i) +
    beta``, with gamma = ln 3 / (p_2 (1 - accuracy)). The simplified mapping has alpha = beta (Eqs
    9-11). The general mapping has alpha = :data:`ALPHA` (Eqs 12-13), or less if beta would be
    negative.

    q always sums to 1. It keeps the order of p if and only if ``alpha tanh(gamma p_2) + beta <=
    accuracy``; for the simplified mapping ``accuracy >= 2 / (K + 2)`` suffices. Below that, the
    first letter may get less than others. At accuracy 1 the first letter gets 1. If p_2 is 0, the
    other letters get equal shares.

    Args:
        probs: p, shape (N, K), NaN where the letter is absent.
        accuracy: acc(B_m) of each question, shape (N,), in [0, 1].
        mapping: "simplified" or "general".

    Returns:
        q, shape (N, K), in [0, 1], NaN where the letter is absent.

    Example:
        >>> target_probs(np.array([[0.75, 0.25]]), np.array([0.5])).tolist()
        [[0.5, 0.5]]
    """
    present = ~np.isnan(probs)
    # Among equal probabilities the first letter counts as the most probable.
    first = np.arange(probs.shape[1]) == top(probs)[1][:, None]
    others = np.where(present & ~first, probs, 0.0)
    rest = 1.0 - accuracy
    # Compute p_i / p_2 first: gamma alone overflows if p_2 is tiny.
    share = _quotient(others, others.max(axis=1, keepdims=True))
    squashed = np.tanh(_quotient(share, rest[:, None]) * math.log(3.0))
    total = squashed.sum(axis=1)
    count = present.sum(axis=1)
    if mapping == "simplified":
        alpha = beta = rest / (total + count - 1)
    else:
        alpha = np.minimum(_quotient(rest, total), ALPHA)
        beta = (rest - alpha * total) / (count - 1)
    q = np.where(first, accuracy[:, None], alpha[:, None] * squashed + beta[:, None])
    return np.where(present, q, np.nan)


def _quotient(over: FloatArray, under: FloatArray) -> FloatArray:
    """Divide, with 0 where the divisor is 0."""
    over, under = np.broadcast_arrays(over, under)
    return np.divide(over, under, out=np.zeros(over.shape), where=under > 0)
