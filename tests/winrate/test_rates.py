import math

import numpy as np
import pytest

from calibtune.winrate.rates import compare, rate
from harness_ext.errors import UserError


def test_win_rate_is_the_mean_score_with_its_standard_error():
    scores = [1.0, 0.0, 0.25, 1.0, 0.5]
    found = rate(scores)
    assert found.win_rate == pytest.approx(0.55)
    assert found.standard_error == pytest.approx(np.std(scores, ddof=1) / math.sqrt(5))
    assert found.n == 5


def test_bootstrap_interval_agrees_with_the_normal_interval():
    scores = np.random.default_rng(1).random(800)
    found = rate(scores)
    assert found.low == pytest.approx(found.win_rate - 1.96 * found.standard_error, abs=0.0025)
    assert found.high == pytest.approx(found.win_rate + 1.96 * found.standard_error, abs=0.0025)


def test_weighted_rate_is_the_weighted_mean_with_a_bootstrap_error():
    generator = np.random.default_rng(3)
    weights = generator.integers(2, 7, 400).astype(float)
    # Heavy questions are won more often, so that weighting matters.
    scores = np.clip(weights / 6 + generator.normal(0, 0.2, 400), 0, 1)
    found = rate(scores, weights)
    assert found.win_rate == pytest.approx(np.average(scores, weights=weights))
    picks = generator.integers(400, size=(4000, 400))
    drawn = (scores * weights)[picks].sum(axis=1) / weights[picks].sum(axis=1)
    assert found.standard_error == pytest.approx(drawn.std(), rel=0.05)
    assert found.high - found.low == pytest.approx(3.92 * drawn.std(), rel=0.08)
    assert rate(scores, np.full(400, 2.0)) == rate(scores)


def test_weighted_comparison_is_the_difference_of_weighted_rates():
    a, b = {"x": 1.0, "y": 0.0, "z": 0.5}, {"x": 0.0, "y": 0.0, "z": 1.0}
    weights = {"x": 6.0, "y": 2.0, "z": 4.0}, {"x": 2.0, "y": 2.0, "z": 2.0}
    interval, shared = compare(a, b, weights)
    assert shared == 3
    assert interval.estimate == pytest.approx(8 / 12 - 1 / 3)


def test_interval_is_reproducible():
    scores = np.random.default_rng(2).random(50)
    assert rate(scores) == rate(scores)


def test_interval_of_three_wins_is_not_degenerate():
    found = rate([1.0, 1.0, 1.0])
    assert found.high == 1
    assert found.low == pytest.approx(0.4385, abs=0.0001)


def test_one_question_has_no_standard_error():
    assert math.isnan(rate([0.5]).standard_error)


@pytest.mark.parametrize("scores", [[], [1.2], [math.nan], [-0.1, 0.5]])
def test_invalid_scores_are_refused(scores):
    with pytest.raises(UserError):
        rate(scores)


def test_comparison_is_paired_by_question():
    base = {f"q{i}": (i % 7) / 6 for i in range(70)}
    better = {q: min(1.0, s + 0.1) for q, s in reversed(base.items())}
    interval, shared = compare(better, base)
    assert shared == 70
    assert interval.estimate == pytest.approx(np.mean([better[q] - base[q] for q in base]))
    # Unpaired, the scores' own spread (sd 0.33) would make the interval some 0.2 wide.
    assert 0 < interval.high - interval.low < 0.03
    assert interval.low > 0


def test_comparison_uses_only_shared_questions():
    interval, shared = compare({"a": 1.0, "b": 0.0}, {"a": 1.0, "c": 0.0})
    assert (interval.estimate, shared) == (0.0, 1)
    with pytest.raises(UserError, match="share no"):
        compare({"a": 1.0}, {"b": 1.0})
