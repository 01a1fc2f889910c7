import sys
from types import SimpleNamespace

import pytest
import torch
from fitting import small_recipe

from calibtune.artifacts.manifest import STARTED
from calibtune.errors import UserError
from calibtune.tuning import checks, inputs
from calibtune.tuning.checks import idle_gpus
from calibtune.tuning.inputs import read_inputs


def test_idle_gpus_are_reported_to_a_single_gpu_process(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "one of 2 GPUs" in idle_gpus(small_recipe(model, "cft", device="cuda"))
    assert idle_gpus(small_recipe(model, "cft", device="cpu")) == ""
    assert idle_gpus(small_recipe(model, "cft", device="cuda", cuda_graphs=True)) == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert idle_gpus(small_recipe(model, "cft", device="cuda")) == ""


def test_liger_on_cpu_is_refused(model):
    with pytest.raises(UserError, match="--liger-kernel needs a GPU, and this fit would run on the CPU; leave it out"):
        read_inputs(small_recipe(model, "cft", liger_kernel=True, device="cpu"))


def test_missing_liger_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(checks, "device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "liger_kernel" else object())
    with pytest.raises(UserError, match="needs liger_kernel, not installed here; pip install liger_kernel"):
        checks.check_machine(small_recipe(model, "cft", liger_kernel=True))


def test_model_type_unknown_to_liger_is_refused(model, mirror, monkeypatch):
    kernels = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": print})
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", kernels)
    monkeypatch.setattr(inputs, "check_machine", lambda recipe: None)
    read_inputs(small_recipe(model, "cft", liger_kernel=True))
    kernels.MODEL_TYPE_TO_APPLY_LIGER_FN.clear()
    with pytest.raises(UserError, match=r"--liger-kernel: Liger has no kernels for a llama model .*; leave it out"):
        read_inputs(small_recipe(model, "cft", liger_kernel=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is no GPU")
def test_cuda_graphs_without_a_gpu_are_refused(model):
    with pytest.raises(UserError, match="--cuda-graphs needs one process on an NVIDIA or AMD GPU; leave it out"):
        read_inputs(small_recipe(model, "cft", cuda_graphs=True))


def test_resume_is_refused_where_another_node_sees_another_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(checks, "PartialState", lambda cpu: None)
    monkeypatch.setattr(checks, "gather_object", lambda mine: [*mine, (False, False)])
    recipe = small_recipe(model, "cft")
    checks.check_shared(recipe, tmp_path)
    (tmp_path / STARTED).touch()
    with pytest.raises(UserError, match=r"--resume: not every node has .* --output folder that all nodes share"):
        checks.check_shared(recipe, tmp_path)
