import json

import numpy as np
import pytest
from harness import enter_mirror, evaluate
from tiny import save_tiny
from winrate_samples import wins, write

from calibtune.errors import UserError
from calibtune.evaluation.guard import guard


@pytest.fixture
def files(tmp_path):
    return lambda name, *args, **more: write(tmp_path / f"{name}.jsonl", *args, **more)


def test_a_clear_loss_beyond_the_margin_fails(files):
    base = wins(0.7)
    worse = base & wins(0.85, seed=1)
    verdict = guard(files("base", base), files("tuned", worse), 0.02)
    assert not verdict.passed
    assert verdict.high < -0.02
    assert verdict.difference == pytest.approx(worse.mean() - base.mean())
    assert "worse by more than the margin 0.02" in verdict.sentence()


def test_the_same_loss_within_a_wider_margin_passes(files):
    base = wins(0.7)
    worse = base & wins(0.85, seed=1)
    assert guard(files("base", base), files("tuned", worse), 0.2).passed


def test_a_loss_that_few_pairs_cannot_show_passes_and_says_so(files):
    base = wins(0.6, count=20)
    worse = base.copy()
    worse[np.flatnonzero(base)[:2]] = False
    verdict = guard(files("base", base), files("tuned", worse), 0.02)
    assert verdict.passed
    assert verdict.difference == pytest.approx(-0.1)
    assert "nor shown not to be" in verdict.sentence()


def test_an_unchanged_model_passes_at_margin_zero(files):
    base = wins(0.7)
    verdict = guard(files("base", base), files("tuned", base), 0.0)
    assert (verdict.passed, verdict.difference, verdict.n) == (True, 0.0, 1000)


def test_pairs_are_matched_by_hash_not_by_place(files, tmp_path):
    base = wins(0.5, count=200)
    path = files("base", base)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(reversed(lines)):
        line["doc_id"] = number
    other = tmp_path / "reversed.jsonl"
    other.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    verdict = guard(path, other, 0.0)
    # Matched by place these would disagree on half of the pairs, and the interval would be wide.
    assert (verdict.low, verdict.high) == (0.0, 0.0)


def test_a_pair_that_is_in_the_data_twice_counts_twice_as_in_the_harness(files, tmp_path):
    lines = [json.loads(line) for line in files("base", [True, False, True]).read_text().splitlines()]
    lines[2]["doc_hash"], lines[2]["prompt_hash"] = lines[0]["doc_hash"], lines[0]["prompt_hash"]
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    verdict = guard(path, path, 0.0)
    assert (verdict.n, verdict.base) == (3, pytest.approx(2 / 3))


def test_other_pairs_or_other_prompts_are_refused(files):
    base = files("base", wins(0.7, count=50))
    with pytest.raises(UserError, match="differ in 20 pairs"):
        guard(base, files("shifted", wins(0.7, count=50), first=10), 0.02)
    with pytest.raises(UserError, match="same chat template"):
        guard(base, files("templated", wins(0.7, count=50), prompt="chat"), 0.02)


@pytest.mark.parametrize("margin", [-0.1, 1.0, float("nan")])
def test_a_margin_out_of_range_is_refused(files, margin):
    base = files("base", wins(0.7, count=5))
    with pytest.raises(UserError, match="--margin"):
        guard(base, base, margin)


def test_a_folder_without_such_samples_is_refused(tmp_path):
    write(tmp_path / "out" / "samples_mc_calib_arc_2026-01-01T00-00-00.000000.jsonl", wins(0.7, count=5))
    with pytest.raises(UserError, match="no samples of ultrafeedback_winrate"):
        guard(tmp_path / "out", tmp_path / "out", 0.02)


def test_wins_agree_with_the_harness_s_own_on_its_samples(tmp_path, monkeypatch):
    from lm_eval.loggers import EvaluationTracker

    folder = tmp_path / "argilla" / "ultrafeedback-binarized-preferences"
    folder.mkdir(parents=True)
    pairs = [
        {
            "instruction": f"Which of these is the right one? {i}",
            "chosen_response": f"option {'ab'[i % 2]} {i}",
            "rejected_response": f"option {'ba'[i % 2]} {7 * i}",
        }
        for i in range(12)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    enter_mirror(tmp_path, monkeypatch)
    rates, outputs = [], []
    for seed in (0, 1):
        found = evaluate(["ultrafeedback_winrate"], save_tiny(tmp_path / f"model{seed}", seed=seed))
        tracker = EvaluationTracker(output_path=str(tmp_path / f"out{seed}"))
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        tracker.save_results_samples("ultrafeedback_winrate", samples["ultrafeedback_winrate"])
        rates.append(found["results"]["ultrafeedback_winrate"]["win_rate,none"])
        outputs.append(tmp_path / f"out{seed}")
    verdict = guard(*outputs, 0.02)
    assert (verdict.base, verdict.tuned, verdict.n) == (pytest.approx(rates[0]), pytest.approx(rates[1]), 12)
    assert rates[0] != rates[1]
