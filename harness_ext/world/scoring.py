"""Scores against the truth, which only a generated world has (paper.md section 2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness_ext.calibration import top
from harness_ext.errors import ScoringError
from harness_ext.letters import Letter
from harness_ext.metrics import process_results as letter_results


def true_calibration_error(probs: ArrayLike, p_star: ArrayLike) -> float:
    """TCE, paper Eq 3: the mean over questions of the L1 distance between p and p*.

    Args:
        probs: The model's probabilities of the options, shape (N, K).
        p_star: The true ones, shape (N, K).

    Returns:
        Between 0 and 2; unlike an ECE it is not 0 for a model that only gets its bins' means right.

    Raises:
        ScoringError: The shapes differ.

    Example:
        >>> round(true_calibration_error([[0.9, 0.1]], [[0.6, 0.4]]), 12)
        0.6
    """
    p, q = np.asarray(probs, dtype=np.float64), np.asarray(p_star, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2 or not len(p):
        raise ScoringError(f"probabilities have shape {p.shape} and p* {q.shape}; give two alike, (N, K)")
    return float(np.abs(p - q).sum(axis=1).mean())


def process_results(doc: Mapping[str, Any], results: Sequence[Letter]) -> dict[str, Any]:
    """The items of one question of the world.

    Args:
        doc: The question, with ``p_star``.
        results: Its letters, as the filter ``letter_softmax`` gives them.

    Returns:
        What every letter task has, and ``tce`` (the question's own L1 distance, 0 to 2), ``acc_true`` (p* of the
        predicted option: the accuracy without the luck of the draw) and ``acc_star`` (p* of the likeliest option: its
        mean is acc*, the accuracy of the best calibrated model).

    Raises:
        ScoringError: As the letter tasks, or p* is missing or not of the options' number.
    """
    items = letter_results(doc, results)
    p_star = doc.get("p_star")
    if not isinstance(p_star, Sequence) or len(p_star) != len(results):
        raise ScoringError(
            f"question {doc['question'][:80]!r} has {len(results)} options and p* {p_star!r}; give one number each"
        )
    probs = np.asarray([[letter.probability for letter in results]])
    return {
        **items,
        "tce": true_calibration_error(probs, [p_star]),
        "acc_true": float(p_star[int(top(probs)[1][0])]),
        "acc_star": float(max(p_star)),
    }
