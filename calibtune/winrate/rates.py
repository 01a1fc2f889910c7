"""Compute win rates, standard errors, intervals and paired differences from per-question scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness_ext.errors import UserError
from harness_ext.intervals import Interval, paired_difference, wilson

DRAWS = 2000
SEED = 0


@dataclass(frozen=True)
class Rate:
    """Hold a win rate in [0, 1] with its error; a draw counts as half a win."""

    #: Mean score.
    win_rate: float
    #: Standard deviation of the scores (n - 1) divided by sqrt(n); NaN for a single question.
    standard_error: float
    #: Ends of the 95 % interval.
    low: float
    high: float
    #: Number of judged questions.
    n: int


def rate(
    scores: Sequence[float] | NDArray[np.float64],
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Rate:
    """Compute a win rate with its standard error and percentile bootstrap interval over questions.

    If all scores are equal, a bootstrap interval has no width; Wilson's interval is used instead.

    Args:
        scores: Score of each question, shape (n,), in [0, 1]: 1 for a win, 0 for a loss.
        weights: Weight of each question, positive, shape (n,); equal by default. Weights are
            resampled with the scores.
        draws: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The win rate.

    Raises:
        UserError: There are no scores, or one is outside [0, 1].

    Example:
        >>> rate([1.0, 0.0, 0.0, 1.0])
        Rate(win_rate=0.5, standard_error=0.28867513459481287, low=0.0, high=1.0, n=4)
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise UserError("there is no judged pair for a win rate; run the judge first")
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise UserError(f"a score of a win rate is {values[outside][0]!r}; give scores in [0, 1]")
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    count, mean = len(values), _mean(values, counts)
    # Standard error of a ratio of sums by linearization; with equal weights it is the usual one.
    error = float((counts * (values - mean)).std(ddof=1) / counts.mean()) / math.sqrt(count) if count > 1 else math.nan
    if np.ptp(values) == 0:
        low, high = wilson(float(values.sum()), count)
    else:
        picks = np.random.default_rng(seed).integers(count, size=(draws, count))
        drawn = (values * counts)[picks].sum(axis=1) / counts[picks].sum(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
    return Rate(mean, error, float(low), float(high), count)


def compare(
    model: Mapping[str, float],
    other: Mapping[str, float],
    weights: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
    seed: int = SEED,
) -> tuple[Interval, int]:
    """Compute the difference of two models' win rates on the questions that both have.

    Args:
        model: The model's score on each question.
        other: The other model's scores against the same baseline.
        weights: Weights of the questions for the first and for the second model; equal by default.
        seed: Seed of the resampling.

    Returns:
        Difference ``model - other`` with its 95 % paired bootstrap interval, and the number of
        shared questions.

    Raises:
        UserError: The models share no question.
    """
    shared = [question for question in model if question in other]
    if not shared:
        raise UserError("the two models share no judged question; compare runs on the same instructions")
    sides = []
    for number, scores in enumerate((model, other)):
        counts = [weights[number][question] if weights else 1.0 for question in shared]
        sides.append((np.array([scores[question] for question in shared]), np.array(counts)))
    return paired_difference(_mean, sides[1], sides[0], seed), len(shared)


def _mean(values: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    return float((values * counts).sum() / counts.sum())
