"""New adapters, and 4-bit scales unpacked for training on a GPU."""

import numpy as np
import pytest
import torch
from fitting import small_fit, small_recipe
from peft.tuners.lora import LoraLayer
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from calibtune.models.loading import load_base
from calibtune.tuning import trainable
from calibtune.tuning.trainable import add_adapter


@pytest.fixture
def four_bit(tmp_path):
    return small_recipe(save_tiny(tmp_path / "model", hidden=64), "cft", quantization="nf4")


def scales(model):
    """Return whether the 4-bit layers' scales are packed, as a set."""
    states = [getattr(getattr(layer, "weight", None), "quant_state", None) for layer in model.modules()]
    return {state.nested for state in states if state is not None}


@pytest.mark.parametrize(
    ("kind", "environment", "packed"),
    [
        ("cuda", {}, False),
        ("cuda", {"ACCELERATE_USE_FSDP": "true"}, True),
        ("cuda", {"ACCELERATE_USE_DEEPSPEED": "true"}, True),
        ("cpu", {}, True),
    ],
)
def test_4_bit_scales_are_unpacked_on_gpu_unless_sharded(four_bit, monkeypatch, kind, environment, packed):
    base = load_base(four_bit.spec)
    monkeypatch.setattr(trainable, "device", lambda name: torch.device(kind))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert scales(add_adapter(base, four_bit)) == {packed}


def test_adapter_covers_every_linear_layer_except_the_head(model):
    tuned = add_adapter(AutoModelForCausalLM.from_pretrained(model), small_recipe(model, "cft"))
    names = [name for name, module in tuned.named_modules() if isinstance(module, LoraLayer)]
    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_unpacked_scales_train_the_same_adapter_on_gpu(tmp_path, mirror, monkeypatch, precision):
    options = {"device": "cuda", "precision": precision, "quantization": "nf4", "learning_rate": 1e-4}
    folder = save_tiny(tmp_path / "model", hidden=64)
    unpacked = small_fit(folder, tmp_path / "unpacked", "rcft", **options)
    monkeypatch.setattr(trainable, "unpack_scales", lambda layer: None)
    packed = small_fit(folder, tmp_path / "packed", "rcft", **options)
    assert unpacked.after["nll"] == pytest.approx(packed.after["nll"], rel=1e-4 if precision == "fp32" else 1e-2)


def test_bf16_keeps_adapter_and_rotary_frequencies_in_float32(model, tmp_path, mirror):
    from calibtune.models.loading import load_base
    from calibtune.tuning.trainable import add_adapter

    recipe = small_recipe(model, "cft", precision="bf16")
    base = load_base(recipe.spec)
    frequencies = base.model.rotary_emb.inv_freq
    tuned = add_adapter(base, recipe)
    assert frequencies.dtype == torch.float32
    assert frequencies[1].item() == pytest.approx(10000 ** (-2 / 8), rel=1e-6)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in tuned.parameters() if not p.requires_grad} == {torch.bfloat16}
    artifact = small_fit(model, tmp_path / "out", "cft", precision="bf16", max_steps=1)
    assert np.isfinite(artifact.after["nll"])
