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
