"""``--liger-kernel``: what is refused, and on a GPU, that it trains what the plain model trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fitting import same_weights, small_recipe

from calibtune.errors import UserError
from calibtune.tuning import checks, inputs
from calibtune.tuning.inputs import read_inputs
from calibtune.tuning.trainer import training_arguments

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
#: Its own process, since Liger changes transformers' modules for all models of a process.
FIT = """
import json, sys
from pathlib import Path
from fitting import small_fit
from transformers.models.llama import modeling_llama
from calibtune.tuning.trainer import CalibrationTrainer
model, output, precision, liger = sys.argv[1:]
seen, norm = [], CalibrationTrainer._get_grad_norm

def noted(self, *args, **options):
    losses = [float(loss) for loss in self._losses]
    value = norm(self, *args, **options)
    seen.append([sum(losses), float(value)])
    return value

CalibrationTrainer._get_grad_norm = noted
options = {"device": "cuda", "precision": precision, "max_steps": 3, "learning_rate": 1e-4}
small_fit(model, Path(output), "rcft", **options, liger_kernel=liger == "liger")
assert ("liger" in modeling_llama.apply_rotary_pos_emb.__module__) == (liger == "liger")
Path(output, "seen.json").write_text(json.dumps(seen))
"""


@pytest.mark.accelerator
@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ligers_kernels_give_the_losses_and_gradients_of_the_plain_model(model, tmp_path, mirror, precision):
    pytest.importorskip("liger_kernel")
    here = Path(__file__).parents[1] / "support"
    paths = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    for name in ("plain", "liger"):
        words = [sys.executable, "-c", FIT, str(model), str(tmp_path / name), precision, name]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": paths})
    plain, liger = (json.loads((tmp_path / name / "seen.json").read_text()) for name in ("plain", "liger"))
    assert len(plain) == 3
    assert np.allclose(liger, plain, rtol=1e-4 if precision == "fp32" else 0.05)
    if precision == "fp32":
        assert same_weights(tmp_path / "plain", tmp_path / "liger", rtol=1e-2, atol=1e-5)


def test_liger_is_refused_on_a_cpu(model):
    with pytest.raises(UserError, match="--liger-kernel needs a GPU, and this fit would run on the CPU; leave it out"):
        read_inputs(small_recipe(model, "cft", liger_kernel=True, device="cpu"))


def test_a_missing_liger_is_said_with_what_to_install(model, monkeypatch):
    monkeypatch.setattr(checks, "device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "liger_kernel" else object())
    with pytest.raises(UserError, match="needs liger_kernel, not installed here; pip install liger_kernel"):
        checks.check_machine(small_recipe(model, "cft", liger_kernel=True))


def test_a_model_that_liger_does_not_know_is_refused(model, mirror, monkeypatch):
    kernels = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": print})
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", kernels)
    monkeypatch.setattr(inputs, "check_machine", lambda recipe: None)
    read_inputs(small_recipe(model, "cft", liger_kernel=True))
    kernels.MODEL_TYPE_TO_APPLY_LIGER_FN.clear()
    with pytest.raises(UserError, match=r"--liger-kernel: Liger has no kernels for a llama model .*; leave it out"):
        read_inputs(small_recipe(model, "cft", liger_kernel=True))


def test_only_ligers_losses_are_left_out(model, tmp_path):
    arguments = training_arguments(small_recipe(model, "cft", liger_kernel=True), tmp_path)
    assert arguments.use_liger_kernel
    assert arguments.liger_kernel_config == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert not training_arguments(small_recipe(model, "cft"), tmp_path).use_liger_kernel
