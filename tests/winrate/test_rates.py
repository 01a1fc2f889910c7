import json
import math

import numpy as np
import pytest

from calibtune.winrate.rates import Rate, compare, rate
from calibtune.winrate.results import Result, table, write
from harness_ext.errors import ScoringError


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
    with pytest.raises(ScoringError):
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
    with pytest.raises(ScoringError, match="share no"):
        compare({"a": 1.0}, {"b": 1.0})


def test_write_makes_files_for_the_report_and_for_lm_eval(tmp_path):
    write(Result("alpaca_eval", "m", "b", Rate(0.3, math.nan, 0.2, 0.4, 1), "why", {"judge": "j"}), tmp_path)
    ours = json.loads((tmp_path / "winrate_alpaca_eval.json").read_text())
    assert {"benchmark", "model", "baseline", "win_rate", "standard_error", "low", "high", "n", "note"} <= ours.keys()
    assert (ours["win_rate"], ours["standard_error"], ours["per_cent"]["win_rate"]) == (0.3, None, 30.0)
    (theirs,) = tmp_path.glob("results_*.json")
    values = json.loads(theirs.read_text())["results"]["alpaca_eval"]
    assert values["win_rate,none"] == 0.3
    assert (values["win_rate_low,none"], values["win_rate_high,none"]) == (0.2, 0.4)


def test_table_shows_win_rate_and_standard_error():
    text = table(Result("arena_hard", "m", "b", Rate(0.415, 0.0125, 0.39, 0.44, 500), "the note"))
    row = next(line for line in text.splitlines() if "win_rate|" in line.replace(" ", ""))
    assert "0.415" in row
    assert "0.0125" in row
    assert "41.50 % (standard error 1.25)" in text
    assert "the note" in text
