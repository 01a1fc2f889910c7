"""The lm_eval command on a real model and real questions, offline from the mirror."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from calibtune.results.measures import harness_measures
from calibtune.results.samples import find_samples, read_samples

HUB = Path(__file__).resolve().parents[2] / "shared" / "data" / "hub"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not HUB.is_dir(), reason="needs the data mirror ../shared/data/hub"),
]


def lm_eval(model, output, cache, *more):
    """Run the command as users type it, with the installed task folder only."""
    command = shutil.which("lm_eval", path=str(Path(sys.executable).parent)) or shutil.which("lm_eval")
    arguments = [
        command,
        "--tasks",
        "mc_calib_arc",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={model},dtype=float32",
        "--apply_chat_template",
        "--limit",
        "32",
        "--log_samples",
        "--output_path",
        str(output),
        *more,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(arguments, cwd=HUB, env=environment, capture_output=True, text=True, timeout=800)


def test_lm_eval_command_prints_metrics_that_samples_reproduce(smollm2, tmp_path):
    run = lm_eval(smollm2, tmp_path / "out", tmp_path / "cache")
    assert run.returncode == 0, run.stderr[-2000:]
    for metric in ("acc", "conf_ece_10", "conf_ece_14", "cw_ece_10", "cw_ece_14", "nll", "brier", "letter_mass"):
        assert f"|{metric} " in run.stdout, metric
    (results,) = (tmp_path / "out").rglob("results_*.json")
    table = json.loads(results.read_text())["results"]["mc_calib_arc"]
    rows = read_samples(find_samples(tmp_path / "out")[0])
    assert len(rows.labels) == 32
    expected = harness_measures(rows.log_probs, rows.labels)
    found = {name: table[f"{name},none"] for name in expected}
    assert found == pytest.approx(expected, abs=1e-12)
    # This model is at chance and overconfident.
    assert 0.1 < found["acc"] < 0.4
    assert found["conf_ece_10"] > 0.08
    assert found["letter_mass"] > 0.5


def test_doctor_passes_on_a_real_model(smollm2, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "calibtune",
        "doctor",
        "--model",
        str(smollm2),
        "--apply-chat-template",
        "--precision",
        "fp32",
    ]
    run = subprocess.run(command, cwd=HUB, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "letters are single tokens of their own in 200 prompts" in run.stdout
    assert "letter mass 0." in run.stdout
    assert "5 of 5 checks passed" in run.stdout
