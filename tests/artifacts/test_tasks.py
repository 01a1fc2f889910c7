import json
import shutil
import subprocess
import venv
from pathlib import Path

import lm_eval
import pytest
import torch
from evaluating import measured, metrics, small_evaluation
from fitting import small_fit

import calibtune
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
    expected = measured(read_samples(find_samples(tmp_path / "out")[0]), t)
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


def other_tasks(folder, names):
    return [
        name for name in names if Path(folder).name == "tasks" and Path(folder, name).is_dir() and name != "mc_calib"
    ]


@pytest.mark.slow
def test_an_artifact_moves_to_another_machine(model, tmp_path):
    small_fit(model, tmp_path / "t", "temperature")
    expected = small_evaluation(tmp_path / "here", artifact=tmp_path / "t").results["mc_calib_arc_scaled"]
    # Another environment, with a harness in another place.
    venv.create(tmp_path / "elsewhere", with_pip=False)
    python = tmp_path / "elsewhere" / "bin" / "python"
    (site,) = (tmp_path / "elsewhere" / "lib").glob("python*/site-packages")
    # With our tasks alone: it would take ten seconds to index the others.
    shutil.copytree(Path(lm_eval.__file__).parent, site / "lm_eval", ignore=other_tasks)
    (site / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n{Path(calibtune.__file__).parents[1]}\n")
    shutil.move(tmp_path / "t", tmp_path / "moved")
    shutil.copytree(model, tmp_path / "base")
    common = ["--tasks", "mc_calib_arc", "--output", "there"]
    harness = ["--include_path", tmp_path / "moved", "--tasks", "mc_calib_arc_scaled", "--output_path", "there"]
    arguments = f"pretrained={tmp_path / 'base'},dtype=float32"
    for words in (
        ["calibtune", "eval", "--artifact", tmp_path / "moved", "--model", tmp_path / "base", *common],
        ["lm_eval", "--model", "hf", "--model_args", arguments, "--device", "cpu", *harness],
    ):
        shutil.rmtree("there", ignore_errors=True)
        done = subprocess.run([python, "-m", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        (results,) = Path("there").rglob("results_*.json")
        found = json.loads(results.read_text("utf-8"))["results"]["mc_calib_arc_scaled"]
        assert found["nll,scaled"] == pytest.approx(expected["nll,scaled"], abs=1e-5)
