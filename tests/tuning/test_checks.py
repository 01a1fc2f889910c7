import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch
from fitting import small_recipe
from quick_python import quick_python

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
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert idle_gpus(small_recipe(model, "cft", device="cuda")) == ""


def test_one_gpu_for_several_processes_is_refused(model, monkeypatch):
    monkeypatch.setattr(checks, "check_spec", lambda spec: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = "--device cuda:1 is one GPU for 2 processes, and each takes its own; leave it out"
    with pytest.raises(UserError, match=refused):
        checks.check_machine(small_recipe(model, "cft", device="cuda:1"))
    for shared in ("cuda", "cpu:0"):
        checks.check_machine(small_recipe(model, "cft", device=shared))
    monkeypatch.delenv("WORLD_SIZE")
    checks.check_machine(small_recipe(model, "cft", device="cuda:1"))


def test_liger_on_cpu_is_refused(model):
    with pytest.raises(UserError, match="--liger-kernel needs a GPU, and this fit would run on the CPU; leave it out"):
        read_inputs(small_recipe(model, "cft", liger_kernel=True, device="cpu"))


def test_missing_liger_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(checks, "device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "liger_kernel" else object())
    with pytest.raises(UserError, match="needs liger_kernel, not installed here; pip install liger_kernel"):
        checks.check_machine(small_recipe(model, "cft", liger_kernel=True))


def installed_liger(monkeypatch, kernels):
    """Have a Liger with kernels for these model types; None: one that cannot be loaded."""
    found = ModuleSpec("liger_kernel", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found if name == "liger_kernel" else None)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    patches = None if kernels is None else SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN=kernels)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", patches)
    return kernels


def with_liger(model, device="cuda", kind="llama", **options):
    return checks.with_kernels(small_recipe(model, device=device, **options), SimpleNamespace(model_type=kind))


def test_gpu_fits_take_liger_by_default_where_it_serves_the_model(model, monkeypatch):
    monkeypatch.setattr(checks, "device", torch.device)
    installed_liger(monkeypatch, {"llama": print, "mixtral": print})
    assert with_liger(model, method="cft").liger_kernel is True
    assert with_liger(model, method="cft", liger_kernel=False).liger_kernel is False
    assert with_liger(model, method="cft", device="cpu").liger_kernel is False
    assert with_liger(model, method="cft", kind="mixtral").liger_kernel is False
    assert with_liger(model, method="cft", kind="qwen2").liger_kernel is False  # which this Liger does not know
    assert with_liger(model, method="cft", trust_remote_code=True).liger_kernel is False
    assert with_liger(model, method="temperature").liger_kernel is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert with_liger(model, method="cft").liger_kernel is False


def test_liger_that_cannot_be_loaded_is_left_out_with_a_warning(model, monkeypatch, caplog):
    monkeypatch.setattr(checks, "device", torch.device)
    installed_liger(monkeypatch, None)
    assert with_liger(model, method="cft").liger_kernel is False
    assert "the fit runs without Liger's kernels, which cannot be loaded (import of" in caplog.text


#: Liger replaces the classes of transformers for the whole process, so it gets one of its own.
NORMS = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.liger import apply_liger_kernel
from calibtune.tuning.trainer import LIGER

for kind in sys.argv[1:]:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads))
    apply_liger_kernel(model, LIGER)
    print(kind, model.model.norm.forward.__func__.__module__)
"""


@pytest.mark.slow
def test_liger_replaces_the_norms_of_each_type_that_takes_it_by_default(tmp_path):
    if importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger_kernel is not installed")
    (tmp_path / "norms.py").write_text(NORMS)
    command = [quick_python(), str(tmp_path / "norms.py"), *checks.DENSE]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    told = dict(line.split() for line in run.stdout.splitlines())
    assert sorted(told) == sorted(checks.DENSE)
    assert all(module.startswith("liger_kernel.") for module in told.values())


def test_model_type_unknown_to_liger_is_refused(model, mirror, monkeypatch):
    kernels = installed_liger(monkeypatch, {"llama": print})
    monkeypatch.setattr(inputs, "check_machine", lambda recipe: None)
    read_inputs(small_recipe(model, "cft", liger_kernel=True))
    kernels.clear()
    with pytest.raises(UserError, match=r"--liger-kernel: Liger has no kernels for a llama model .*; leave it out"):
        read_inputs(small_recipe(model, "cft", liger_kernel=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is no GPU")
def test_cuda_graphs_without_a_gpu_are_refused(model):
    with pytest.raises(
        UserError, match="--cuda-graphs needs an NVIDIA or AMD GPU that holds the whole model; leave it out"
    ):
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
