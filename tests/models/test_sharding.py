"""Fits with FSDP in two processes, and setups that are refused."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import shell
from cpu_fsdp import FSDP2, launched
from fitting import same_weights, small_recipe, words
from safetensors.torch import load_file
from tiny import build_model, build_tokenizer, save_tiny

from calibtune.errors import UserError, WorkFailed
from calibtune.models import loading
from calibtune.models.heads import head_is_last
from calibtune.models.sharding import save_whole
from calibtune.tuning.checks import check_machine

pytestmark = pytest.mark.usefixtures("mirror")


def weights(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def fsdp_fit(arguments, cwd, monkeypatch, **environment):
    """Run a fit with FSDP in two processes and return its exit code and what it said on stderr."""
    two = launched(Path(__file__).parents[1] / "support" / "cpu_fsdp.py", arguments)
    with monkeypatch.context() as patch:
        for name, value in {**FSDP2, **environment}.items():
            patch.setenv(name, value)
        process = shell(two, cwd, stderr=subprocess.PIPE)
        said = process.communicate(timeout=300)[1]
        return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_killed_fsdp_fit_resumes_to_the_single_process_result(model, tmp_path, mirror, monkeypatch, tuning):
    # Chat prompts are long enough for the E-step to use the prefix cache.
    one, two = (
        [
            *words(model, tmp_path / name, "rcft", tuning=tuning, epochs=2, save_every=1, batch_size=size),
            "--apply-chat-template",
            "--resume",
        ]
        for name, size in (("one", 4), ("two", 2))
    )
    assert shell(["-m", "calibtune", *one], mirror).wait(300) == 0
    assert fsdp_fit(two, mirror, monkeypatch, STOP_AFTER="6")[0] != 0
    assert (tmp_path / "two" / "checkpoints").is_dir()
    code, said = fsdp_fit(two, mirror, monkeypatch)
    assert code == 0, said
    assert "each process holds all of" not in said
    left, right = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-5)
    first, second = (json.loads((tmp_path / name / "calibtune.json").read_text()) for name in ("one", "two"))
    assert second["before"] == pytest.approx(first["before"], abs=1e-6)
    assert second["after"] == pytest.approx(first["after"], abs=1e-3)


@pytest.mark.slow
def test_nf4_base_is_split_and_trains_as_in_one_process(tmp_path, mirror, monkeypatch):
    base = save_tiny(tmp_path / "base", hidden=64)
    one, two = (
        words(base, tmp_path / name, "rcft", quantization="nf4", batch_size=size)
        for name, size in (("one", 4), ("two", 2))
    )
    assert shell(["-m", "calibtune", *one], mirror).wait(300) == 0
    code, said = fsdp_fit(two, mirror, monkeypatch)
    assert code == 0, said
    assert "each process holds all of" in said  # once, before it is split
    assert "Excluding from FSDP2 sharding" not in said
    assert same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_temperature_of_a_split_model_is_that_of_one_process(model, tmp_path, mirror, monkeypatch):
    assert shell(["-m", "calibtune", *words(model, tmp_path / "one", "temperature")], mirror).wait(300) == 0
    code, said = fsdp_fit(words(model, tmp_path / "two", "temperature"), mirror, monkeypatch)
    assert code == 0, said
    assert "each process holds all of" not in said
    first, second = (json.loads((tmp_path / name / "temperature.json").read_text()) for name in ("one", "two"))
    assert second["temperature"] == pytest.approx(first["temperature"], rel=1e-4)


def test_fsdp_1_is_refused(model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="set fsdp_version: 2"):
        check_machine(small_recipe(model, "rcft"))


def test_tensor_parallel_processes_are_refused(model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(UserError, match="parallelism_config is not supported without FSDP; leave out"):
        check_machine(small_recipe(model, "rcft"))


def test_auto_batch_is_refused_under_fsdp(model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=r"--auto-batch tries sizes .* give --batch-size \(now 4\)"):
        check_machine(small_recipe(model, "rcft", auto_batch=True))


def test_every_process_loads_the_base_weights_under_fsdp(model, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    seen = []
    load = loading.AutoModelForCausalLM.from_pretrained

    def recorded(*args, **options):
        seen.append(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])
        return load(*args, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", recorded)
    loading.load_base(small_recipe(model, "rcft").spec)
    assert seen == ["false"]
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


def test_saving_without_weights_fails(tmp_path):
    wrote = []
    trainer = SimpleNamespace(is_fsdp_enabled=False, save_model=wrote.append, is_world_process_zero=lambda: True)
    with pytest.raises(WorkFailed, match="zero3_save_16bit_model: true"):
        save_whole(trainer, None, tmp_path)
    assert wrote == [str(tmp_path)]


def test_head_sharded_by_zero_3_is_not_called_directly():
    model = build_model(build_tokenizer())
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert head_is_last(model, batch)
    model.lm_head.weight.ds_id = 0
    assert not head_is_last(model, batch)
