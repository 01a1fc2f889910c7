"""Compute the paired differences of all metrics between two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibtune.reporting.questions import Questions
from harness_ext.binning import FloatArray
from harness_ext.calibration import (
    BinGaps,
    brier_rows,
    letter_log_softmax,
    top,
)
from harness_ext.intervals import SEED, Interval, basic_interval, ece_difference_interval, resampled_means
from harness_ext.registry import BINS, ECES, MEANS

DRAWS = 1000


@dataclass(frozen=True)
class Scored:
    """Hold a model's per-question terms, from which all metrics are computed."""

    #: Value of each question for the metrics ``MEANS``, shape (N, 4).
    means: FloatArray
    #: Terms of each ECE, by name.
    gaps: dict[str, BinGaps]


def scored(questions: Questions, temperature: float = 1.0) -> Scored:
    """Compute the per-question terms of all metrics at a temperature."""
    log_probs = letter_log_softmax(questions.loglikelihoods, temperature)
    probs, gold = np.exp(log_probs), questions.gold
    means = np.stack(
        [
            (top(probs)[1] == gold).astype(np.float64),
            -log_probs[np.arange(len(gold)), gold],
            brier_rows(probs, gold),
            np.nansum(np.exp(questions.loglikelihoods), axis=1),
        ],
        axis=1,
    )
    gaps = {f"{ece}_{bins}": cells(probs, gold, bins) for ece, cells in ECES.items() for bins in BINS}
    return Scored(means, gaps)


def paired_differences(a: Scored, b: Scored, draws: int = DRAWS, seed: int = SEED) -> dict[str, Interval]:
    """Compute the difference b - a of all metrics with 95 % intervals on the same questions.

    Means have the basic bootstrap of :func:`harness_ext.intervals.paired_difference`: the same
    resamples with the same seed, and so the same interval, but drawn once for all means. ECEs have
    :func:`harness_ext.intervals.ece_difference_interval`, since the bootstrap of a sum of absolute
    values does not cover.

    Args:
        a: The base model's terms.
        b: The other model's terms, rows in the same order.
        draws: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Difference and interval of each of ``MEANS`` and each ECE.
    """
    point, values = b.means.mean(axis=0) - a.means.mean(axis=0), resampled_means(b.means - a.means, draws, seed).T
    found = {name: basic_interval(float(point[i]), values[i]) for i, name in enumerate(MEANS)}
    return found | {name: ece_difference_interval(a.gaps[name], b.gaps[name]) for name in a.gaps}
