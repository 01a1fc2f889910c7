"""Models of which each process reads its own share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import shares_memory
import torch
from architectures import ARCHITECTURES, save_architecture
from commands import shell
from cpu_fsdp import launched
from fitting import adapter_weights, words
from tiny import save_tiny, write_arc_mirror
from transformers import AutoModelForCausalLM

from calibtune.models import shares
from calibtune.models.loading import load_config
from calibtune.models.quantized import passed_by
from calibtune.models.shares import gathered_alone, share_options
from calibtune.spec import ModelSpec

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.slow
def test_every_architecture_read_in_shares_is_the_whole_model_split(tmp_path):
    folders = [str(save_architecture(name, tmp_path / name.replace(" ", "-"))) for name in ARCHITECTURES]
    arguments = launched(SUPPORT / "shares_checked.py", [tmp_path / "found.json", *folders])
    assert shell(arguments, tmp_path).wait(600) == 0
    assert json.loads((tmp_path / "found.json").read_text()) == {folder: [] for folder in folders}


@pytest.mark.slow
def test_no_process_holds_more_of_the_weights_than_its_share_and_the_largest_layer(tmp_path):
    # Two processes have the larger share, and the next test.
    check_held(tmp_path, [4], "cpu", hidden=768, layers=4)


@pytest.mark.slow
def test_embeddings_larger_than_all_layers_are_held_once(tmp_path):
    check_held(tmp_path, [2], "cpu", hidden=512, layers=6, vocabulary=2**16)


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@two_gpus
@pytest.mark.accelerator
def test_no_gpu_holds_more_of_the_weights_than_its_share_and_the_largest_layer(tmp_path):
    check_held(tmp_path, [2], "cuda", hidden=1024, layers=8)


def check_held(folder, processes, device, **sizes):
    """Check that at no time of a fit a process holds more of the weights; what FSDP gathers counts."""
    write_arc_mirror(folder / "hub")
    args = SimpleNamespace(device=device, tuning="lora", whole=False)
    for row in shares_memory.compare(folder, save_tiny(folder / "model", **sizes), processes, args):
        gathered = row.get("gpu", row["host"])
        for peaks in (row["host"]["loaded"], gathered["scored"], gathered["ended"]):
            # FSDP's own objects take some MB.
            assert max(peaks) <= row["bound"] + 10 < row["model"]


@two_gpus
@pytest.mark.accelerator
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_two_gpus_train_the_adapter_of_one(tmp_path, mirror, quantization):
    base = save_tiny(tmp_path / "base", hidden=64)
    launch = ["accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2", "--num_processes=2", "-m", "calibtune"]
    for name, module, size in (("one", ["calibtune"], 4), ("two", launch, 2)):
        fit = words(base, tmp_path / name, "rcft", batch_size=size, device=None, quantization=quantization)
        hidden = {"CUDA_VISIBLE_DEVICES": "0"} if name == "one" else {}
        subprocess.run([sys.executable, "-m", *module, *fit], check=True, env={**os.environ, **hidden}, timeout=300)
    one, two = (adapter_weights(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        # Where Adam's moments nearly cancel, rounding moves a single weight by a fifth of a step, in one process too.
        assert (two[name] - weight).norm() <= 1e-2 * weight.norm(), name


@pytest.fixture
def two_processes(monkeypatch):
    """Make the process believe that it is one of two which FSDP 2 splits a model over."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(shares, "PartialState", lambda: SimpleNamespace(num_processes=2))


def test_a_layer_is_what_is_gathered_at_a_time(model, two_processes):
    spec = ModelSpec(str(model))
    options = share_options(spec, load_config(spec))["distributed_config"]
    assert options.fsdp_size == 2
    assert options.fsdp_plan == {"model.layers.*": "free_full_weight"}


def test_weights_that_the_code_reads_without_a_call_are_gathered_with_their_layer(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_architecture("Mamba2", tmp_path))
    alone = gathered_alone(model)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in alone}
    assert names == {"embeddings", "in_proj", "lm_head"}
    assert "out_proj" in {name.rpartition(".")[2] for name in passed_by(model)}


def test_one_process_and_plain_data_parallelism_load_the_whole_model(model, monkeypatch, caplog):
    spec = ModelSpec(str(model))
    assert share_options(spec, load_config(spec)) == {}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert share_options(spec, load_config(spec)) == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("flag", "options", "why"),
    [
        (None, {"quantization": "nf4"}, "its weights are quantized"),
        ("FSDP_OFFLOAD_PARAMS", {}, "accelerate is configured with fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", {}, "accelerate is configured with fsdp_activation_checkpointing"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", {}, "accelerate is configured with parallelism_config"),
    ],
)
def test_what_cannot_be_read_in_shares_is_loaded_whole_with_a_warning(
    model, two_processes, monkeypatch, caplog, flag, options, why
):
    if flag is not None:
        monkeypatch.setenv(flag, "true")
    spec = ModelSpec(str(model), **options)
    assert share_options(spec, load_config(spec)) == {}
    (record,) = caplog.records
    assert record.getMessage() == f"each process holds all of {model} before FSDP splits it, because {why}"


def test_code_of_the_models_own_is_loaded_whole(model, two_processes, caplog):
    spec = ModelSpec(str(model), trust_remote_code=True)
    config = load_config(spec)
    config.auto_map = {"AutoModelForCausalLM": "modeling.Model"}
    assert share_options(spec, config) == {}
    assert "because its code is not transformers' own" in caplog.text


def test_a_transformers_without_plans_loads_the_whole_model(model, two_processes, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "transformers.distributed", None)
    spec = ModelSpec(str(model))
    assert share_options(spec, load_config(spec)) == {}
    assert "pip install -U transformers" in caplog.text
