import json

import pytest
from evaluating import metrics, small_evaluation
from fitting import small_fit

from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.usefixtures("mirror")


def test_scaled_task_reports_raw_and_scaled_metrics(model, tmp_path):
    artifact = small_fit(model, tmp_path / "t", "temperature")
    t = artifact.temperature["temperature"]
    results = small_evaluation(tmp_path / "out", artifact=tmp_path / "t")
    raw, scaled = (metrics(results, "mc_calib_arc_scaled", pipeline) for pipeline in ("none", "scaled"))
    base = metrics(small_evaluation(tmp_path / "base", model=str(model)))
    assert raw == pytest.approx(base, abs=1e-6)
    assert scaled["acc"] == raw["acc"]
    rows = read_samples(find_samples(tmp_path / "out")[0])
    from calibtune.results.measures import harness_measures

    expected = harness_measures(rows.log_probs, rows.labels, t)
    assert scaled == pytest.approx({name: expected[name] for name in scaled}, abs=1e-9)
    assert json.loads((tmp_path / "t" / "temperature.json").read_text())["temperature"] == t


def test_written_tasks_name_no_path_and_evaluate_alone_with_lm_eval(model, tmp_path):
    from harness import manager
    from lm_eval import simple_evaluate

    small_fit(model, tmp_path / "t", "temperature")
    for file in (tmp_path / "t").glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        assert "include" not in text
        assert "site-packages" not in text
        assert "/lm_eval" not in text
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=["mc_calib_arc_scaled"],
        device="cpu",
        bootstrap_iters=0,
        task_manager=manager(tmp_path / "t"),
    )
    ours = small_evaluation(tmp_path / "out", artifact=tmp_path / "t")
    assert found["results"]["mc_calib_arc_scaled"]["nll,scaled"] == pytest.approx(
        ours.results["mc_calib_arc_scaled"]["nll,scaled"], abs=1e-5
    )
