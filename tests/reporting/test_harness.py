import pytest
from harness import enter_mirror, evaluate
from tiny import save_tiny, write_arc_mirror

from calibtune.reporting.build import build


@pytest.mark.slow
def test_report_shows_the_harness_results(tmp_path, monkeypatch):
    from lm_eval.loggers import EvaluationTracker

    model = save_tiny(tmp_path / "tiny")
    enter_mirror(write_arc_mirror(tmp_path / "hub"), monkeypatch)
    for chat in (False, True):
        tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
        found = evaluate(["mc_calib_arc"], model, evaluation_tracker=tracker, apply_chat_template=chat)
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        tracker.save_results_samples("mc_calib_arc", samples["mc_calib_arc"])
    results = build([tmp_path / "out"])
    (note,) = results["notes"]
    assert "tiny (chat template) was evaluated with chat template, tiny without" in note
    assert [method["label"] for method in results["methods"]] == ["tiny", "tiny (chat template)"]
    task = results["tasks"]["mc_calib_arc"]
    assert task["questions"] == 24
    own = found["results"]["mc_calib_arc"]
    shown = task["methods"]["tiny (chat template)"]
    names = [name for name in shown["numbers"] if f"{name},none" in own]
    assert len(names) == 16
    assert {name: shown["numbers"][name] for name in names} == pytest.approx(
        {n: own[f"{n},none"] for n in names}, abs=1e-12
    )
    assert shown["difference"]["questions"] == 24
