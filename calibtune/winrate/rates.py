"""Win rates as pure functions of per-question scores: rate, standard error, intervals, paired comparison."""

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
    """A win rate as a share, within [0, 1], as the harness gives its metrics; a draw counts half a win."""

    #: Mean score.
    win_rate: float
    #: The scores' standard deviation (n - 1) over the root of n; NaN for one question alone.
    standard_error: float
    #: Ends of the 95 % interval.
    low: float
    high: float
    #: Questions judged.
    n: int


def rate(
    scores: Sequence[float] | NDArray[np.float64],
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Rate:
    """Win rate with its standard error and percentile bootstrap interval over questions.

    Args:
        scores: One a question, shape (n,), within [0, 1]: 1 a win, 0 a loss, between them a judge's weighted verdict.
        weights: What each question counts, positive, shape (n,); equal if not given. They are drawn with the scores.
        draws: Bootstrap resamples.
        seed: Seed of the resampling; the same scores give the same interval.

    Returns:
        The rate. Where all scores are equal a bootstrap has no width, and Wilson's interval stands in.

    Raises:
        UserError: There is no score, or one is outside [0, 1].

    Example:
        >>> rate([1.0, 0.0, 0.0, 1.0])
        Rate(win_rate=0.5, standard_error=0.28867513459481287, low=0.0, high=1.0, n=4)
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise UserError("no judged pair is left to take a win rate of; run the judge first")
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise UserError(f"a win rate needs scores within [0, 1], got {values[outside][0]!r}")
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    count, mean = len(values), _mean(values, counts)
    # A ratio of sums: its error by linearization, which for equal weights is the usual standard error of a mean.
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
    """Difference of two models' win rates against the same baseline on the questions that both have.

    Args:
        model: Score by question.
        other: The same of the model to compare with, its base for instance.
        weights: What each question counts for the first and for the second model; equal if not given.
        seed: Seed of the resampling.

    Returns:
        Difference ``model - other`` of the shares with its 95 % paired bootstrap interval, and the number of
        shared questions.

    Raises:
        UserError: No question is shared.
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
