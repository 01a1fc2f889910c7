"""Rank models that answered the same questions: pairwise tests, ranks with intervals, groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import BinGaps
from harness_ext.debiasing import Debiased, debias, resampling_covariance, side_by_side, standardize, unseen_variance
from harness_ext.intervals import DRAWS, resampled_means

BoolArray = NDArray[np.bool_]


class Contest(NamedTuple):
    """Hold what M models scored on the same questions, with the noise of every model and pair."""

    #: Shape (M,), the smaller the better.
    scores: FloatArray
    #: Sums for the M models, then for the pairs of :func:`pairs` (second minus first).
    sums: Debiased
    #: Number of questions.
    questions: int


class Ranking(NamedTuple):
    """Hold ranks of M models, 1 the best, and what the pairwise tests say."""

    #: Shape (M,); equal scores have equal ranks.
    rank: IntArray
    #: Ends of the ranks' simultaneous 95 % intervals, shape (M,).
    low: IntArray
    high: IntArray
    #: Shape (P,): p-value of each pair of :func:`pairs`, before and after Holm's correction.
    p: FloatArray
    adjusted: FloatArray
    #: Shape (M, M): whether the row's model is better than the column's.
    better: BoolArray
    #: Models that cannot be told apart; see :func:`groups`.
    groups: list[list[int]]


def pairs(models: int) -> tuple[IntArray, IntArray]:
    """Return both models of each pair, shape (P,) each, P = M (M - 1) / 2."""
    first, second = np.triu_indices(models, 1)
    return first, second


def _columns(models: int) -> FloatArray:
    """Return the weights of the models in each sum of a contest, shape (M, M + P)."""
    first, second = pairs(models)
    one = np.eye(models)
    return np.hstack([one, one[:, second] - one[:, first]])


def contest_of_means(values: FloatArray, draws: int = DRAWS, seed: int | Sequence[int] = 0) -> Contest:
    """Compare means over the questions by the paired bootstrap: the same questions are drawn for all models.

    Args:
        values: Shape (N, M), such as NLL or errors: the smaller the better.
        draws: Number of resamples.
        seed: Seed of the resampling.
    """
    scores, columns = values.mean(axis=0), _columns(values.shape[1])
    noise = (resampled_means(values, draws, seed) - scores) @ columns
    none = np.zeros(columns.shape[1])
    return Contest(scores, Debiased(scores @ columns, none, none, noise), len(values))


def contest_of_eces(models: Sequence[BinGaps], draws: int = DRAWS, seed: int | Sequence[int] = 0) -> Contest:
    """Compare ECEs by bias-aware intervals, with the covariance of all bins of all models.

    The bootstrap of an ECE does not cover; see :func:`harness_ext.intervals.ece_difference_interval`,
    which excludes 0 for the same pairs, up to the draws of the noise.

    Args:
        models: The cells of each model, rows in the same order.
        draws: Draws of the noise.
        seed: Seed of the draws.
    """
    every = side_by_side(models)
    sums = every.sums()
    covariance = resampling_covariance(every, sums) + np.diag(unseen_variance(every, sums))
    owner = np.repeat(np.arange(len(models)), [len(model.weight) for model in models])
    weight = every.weight[:, None] * _columns(len(models))[owner]
    scores = np.array([model.ece() for model in models])
    return Contest(scores, debias(standardize(sums, covariance, weight, draws, seed)), len(every.cell))


def among(contest: Contest, models: Sequence[int]) -> Contest:
    """Return the contest of some of its models, given in its order."""
    count, (first, second) = len(contest.scores), pairs(len(models))
    chosen = np.asarray(models)
    number = np.zeros((count, count), dtype=np.int64)
    number[pairs(count)] = np.arange(count, count + count * (count - 1) // 2)
    columns = np.concatenate([chosen, number[chosen[first], chosen[second]]])
    return Contest(contest.scores[chosen], Debiased(*(each[..., columns] for each in contest.sums)), contest.questions)


def mean_contest(contests: Sequence[Contest]) -> Contest:
    """Return the contest of the mean over tasks, whose questions and draws are independent of each other's."""
    values = [np.mean(each, axis=0) for each in zip(*(contest.sums for contest in contests), strict=True)]
    scores = np.mean([contest.scores for contest in contests], axis=0)
    return Contest(scores, Debiased(*values), sum(contest.questions for contest in contests))


def rank(contest: Contest, level: float = 0.95) -> Ranking:
    """Rank the models of a contest.

    A rank's interval begins after all models that are better by the tests, and ends before all that
    are worse (Mogstad, Romano, Shaikh & Wilhelm 2024). Since Holm's correction bounds the chance of
    any false claim by ``1 - level``, all intervals hold their true ranks together with at least that
    chance. The quantiles of resampled ranks do not, where models tie.
    """
    scores = contest.scores
    first, second = pairs(len(scores))
    p = p_values(contest)
    adjusted = holm(p)
    sure = adjusted < 1 - level
    better = np.zeros((len(scores), len(scores)), dtype=bool)
    ahead = scores[first] < scores[second]
    better[first[sure & ahead], second[sure & ahead]] = True
    better[second[sure & ~ahead], first[sure & ~ahead]] = True
    ranks = 1 + (scores[:, None] > scores).sum(axis=1)
    low, high = 1 + better.sum(axis=0), len(scores) - better.sum(axis=1)
    return Ranking(ranks, low, high, p, adjusted, better, groups(np.argsort(scores, kind="stable"), better))


def p_values(contest: Contest) -> FloatArray:
    """Return the two-sided p-value of each pair's difference: the level at which its interval reaches 0, shape (P,).

    Beyond the draws the normal tail stands for them. N questions of which one model wins all have a
    p-value of 2^(1 - N), the sign test's, which is the least.
    """
    models = len(contest.scores)
    value, least, most, noise = (each[..., models:] for each in contest.sums)
    first, second = pairs(models)
    difference = contest.scores[second] - contest.scores[first]
    distance = np.where(difference > 0, value - most, least - value)
    share = (np.abs(noise) >= distance).mean(axis=0)
    spread = noise.std(axis=0)
    ratio = np.divide(distance, spread, out=np.full_like(distance, np.inf), where=spread > 0)
    tail = np.array([math.erfc(each / math.sqrt(2)) for each in ratio])
    found = np.maximum(np.maximum(share, tail), 2.0 ** (1 - contest.questions))
    return np.where((distance > 0) & (difference != 0), np.minimum(found, 1.0), 1.0)


def holm(p: FloatArray) -> FloatArray:
    """Adjust p-values for their number (Holm 1979): the chance of any false one stays below the level.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03, 0.005])).round(3).tolist()
        [0.03, 0.06, 0.06, 0.02]
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def groups(order: IntArray, better: BoolArray) -> list[list[int]]:
    """Return the longest runs of neighbors in the ranking of which no two can be told apart; runs can overlap.

    Args:
        order: The models, the best first.
        better: Shape (M, M), see :class:`Ranking`.

    Example:
        >>> groups(np.array([0, 1, 2]), np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=bool))
        [[0, 1], [1, 2]]
    """
    apart = better | better.T
    found: list[list[int]] = []
    reached = 0
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not apart[order[end], order[start:end]].any():
            end += 1
        if end > reached:
            found.append(order[start:end].tolist())
            reached = end
    return found
