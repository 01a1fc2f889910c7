import itertools

import numpy as np
import pytest
from scipy.stats import binom

from harness_ext.calibration import confidence_gaps
from harness_ext.intervals import ece_difference_interval
from harness_ext.ranking import (
    among,
    contest_of_eces,
    contest_of_means,
    groups,
    holm,
    mean_contest,
    p_values,
    pairs,
    rank,
)


def losses(rows=60, models=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.exponential(1, (rows, 1)) + rng.normal(0, 0.5, (rows, models)) + 0.2 * np.arange(models)


def cells(sharpness, rows=300, seed=0, own=0):
    """The gaps of models that see the same questions and are overconfident by a factor of ``sharpness``."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, (rows, 4))
    probs = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    gold = (rng.random(rows)[:, None] > probs.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    said = probs**sharpness * np.exp(0.1 * np.random.default_rng([seed, own]).normal(size=probs.shape))
    return confidence_gaps(said / said.sum(axis=1, keepdims=True), gold, 10)


def test_means_are_resampled_with_the_same_questions_for_all_models():
    values, draws = losses(), 40
    contest = contest_of_means(values, draws, seed=3)
    rng = np.random.default_rng(3)
    found = np.empty((draws, 4))
    for draw in range(draws):
        found[draw] = values[rng.integers(60, size=60)].mean(axis=0)
    assert contest.sums.noise[:, :4] == pytest.approx(found - values.mean(axis=0))
    for column, (a, b) in enumerate(itertools.combinations(range(4), 2), start=4):
        assert contest.sums.value[column] == pytest.approx(values[:, b].mean() - values[:, a].mean())
        difference = (found[:, b] - found[:, a]) - (values[:, b] - values[:, a]).mean()
        assert contest.sums.noise[:, column] == pytest.approx(difference)


def test_a_p_value_is_the_share_of_resamples_as_far_off_or_the_normal_tail():
    contest = contest_of_means(losses(models=2), 4000)
    (p,) = p_values(contest)
    difference, noise = contest.sums.value[2], contest.sums.noise[:, 2]
    share = np.mean(np.abs(noise) >= abs(difference))
    assert 0 < share < 0.2
    assert share <= p < share + 0.02
    (far,) = p_values(contest_of_means(losses(models=2) + np.array([0.0, 5.0]), 100))
    assert 0 < far < 1e-12


def test_eces_are_told_apart_where_the_interval_of_their_difference_excludes_0():
    models = [cells(sharpness, own=i) for i, sharpness in enumerate((1.0, 1.0, 1.4, 2.0, 2.0, 3.0))]
    p = p_values(contest_of_eces(models))
    clear = []
    for a, b in itertools.combinations(models, 2):
        low, high = ece_difference_interval(a, b)[1:]
        clear.append(low > 0 or high < 0)
    assert (p < 0.05).tolist() == clear
    assert 2 <= sum(clear) <= 13


def test_the_contest_of_two_eces_has_the_ends_of_their_difference():
    a, b = cells(1.4), cells(2.5, own=1)
    low, high = contest_of_eces([a, b]).sums.ends(0.95)
    expected = ece_difference_interval(a, b)
    assert expected.low == pytest.approx(low[2], abs=1e-12)
    assert expected.high <= high[2] + 1e-12


def test_equal_models_are_never_told_apart():
    values = losses(models=1).repeat(3, axis=1)
    found = rank(contest_of_means(values, 50))
    assert found.rank.tolist() == [1, 1, 1]
    assert found.p.tolist() == [1, 1, 1]
    assert (found.low.tolist(), found.high.tolist()) == ([1] * 3, [3] * 3)
    assert rank(contest_of_eces([cells(2.0)] * 3)).high.tolist() == [3] * 3


def test_three_questions_do_not_tell_models_apart_whatever_their_answers():
    values = np.array([[0.0, 1.0]] * 3)
    assert p_values(contest_of_means(values)).tolist() == [0.25]


def test_one_model_is_first():
    found = rank(contest_of_means(losses(models=1)))
    assert (found.rank.tolist(), found.low.tolist(), found.high.tolist(), found.groups) == ([1], [1], [1], [[0]])


def test_holm_by_hand():
    # Sorted: .01 * 4, .02 * 3, .03 * 2 (not below the one before), .5.
    assert holm(np.array([0.02, 0.5, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []


def test_ranks_and_their_intervals_by_counting():
    contest = contest_of_means(losses(rows=60, models=6))
    found = rank(contest)
    means = contest.scores
    for model in range(6):
        assert found.rank[model] == 1 + sum(other < means[model] for other in means)
        ahead, behind = 0, 0
        for p, a, b in zip(found.adjusted, *pairs(6), strict=True):
            if p < 0.05 and model in (a, b):
                ahead += means[model] > means[a] or means[model] > means[b]
                behind += means[model] < means[a] or means[model] < means[b]
        assert (found.low[model], found.high[model]) == (1 + ahead, 6 - behind)
        assert found.low[model] <= found.rank[model] <= found.high[model]
    assert 0 < found.better.sum() < 15


def test_groups_are_all_longest_runs_without_a_clear_pair():
    rng = np.random.default_rng(0)
    for _ in range(50):
        models = 6
        better = np.triu(rng.random((models, models)) < 0.3, 1)
        runs = [range(a, b) for a in range(models) for b in range(a + 1, models + 1)]
        whole = [set(run) for run in runs if not any(better[a, b] for a in run for b in run)]
        longest = [run for run in whole if not any(run < other for other in whole)]
        order = rng.permutation(models)
        shuffled = np.zeros_like(better)
        shuffled[np.ix_(order, order)] = better
        assert [set(group) for group in groups(order, shuffled)] == [{order[i] for i in run} for run in longest]


def test_some_models_of_a_contest_are_those_models_alone():
    values = losses(models=5)
    found = among(contest_of_means(values, 30), [0, 2, 4])
    expected = contest_of_means(values[:, [0, 2, 4]], 30)
    assert found.scores == pytest.approx(expected.scores)
    assert found.sums.value == pytest.approx(expected.sums.value)
    assert found.sums.noise == pytest.approx(expected.sums.noise)


def test_the_mean_over_tasks_averages_scores_and_draws():
    tasks = [contest_of_means(losses(seed=1), 30, seed=1), contest_of_eces([cells(s) for s in (1, 2, 3, 4)], 30, 2)]
    found = mean_contest(tasks)
    assert found.scores == pytest.approx((tasks[0].scores + tasks[1].scores) / 2)
    assert found.sums.noise == pytest.approx((tasks[0].sums.noise + tasks[1].sums.noise) / 2)
    assert found.sums.most == pytest.approx(tasks[1].sums.most / 2)


@pytest.mark.parametrize("measure", ["mean", "ece"])
def test_rank_intervals_hold_all_true_ranks_together(measure):
    # Two models tie, where quantiles of resampled ranks do not cover.
    draws, held = 120, 0
    sharpness = (1.0, 1.6, 1.6, 2.2)
    for draw in range(draws):
        if measure == "mean":
            rng = np.random.default_rng(draw)
            values = rng.exponential(1, (150, 1)) * rng.exponential(1, (150, 4)) + np.array([-0.4, 0, 0, 0.4])
            found = rank(contest_of_means(values, 200, draw))
        else:
            models = [cells(s, 200, seed=draw, own=i) for i, s in enumerate(sharpness)]
            found = rank(contest_of_eces(models, 200, draw))
        low, high = found.low, found.high
        held += (low <= [1, 2, 2, 4]).all() and (high >= [1, 3, 3, 4]).all()
    # At .95 fewer than this many occur in one of a thousand such runs.
    assert held >= binom.ppf(0.001, draws, 0.95)
