"""New adapters, and 4-bit scales that are unpacked once."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from fitting import small_fit, small_recipe
from peft.tuners.lora import LoraLayer
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from calibtune.models.adapters import unpack_scales
from calibtune.models.loading import load_base
from calibtune.tuning import trainable
from calibtune.tuning.trainable import add_adapter


@pytest.fixture
def four_bit(tmp_path):
    return small_recipe(save_tiny(tmp_path / "model", hidden=64), "cft", quantization="nf4")


def scales(model):
    """Whether each 4-bit layer's scales are still packed."""
    states = [getattr(getattr(layer, "weight", None), "quant_state", None) for layer in model.modules()]
    return {state.nested for state in states if state is not None}


def test_unpacking_scales_keeps_the_4_bit_weights(four_bit):
    layer = load_base(four_bit.spec).model.layers[0].mlp.down_proj
    before = dequantize_4bit(layer.weight, layer.weight.quant_state)
    assert layer.weight.quant_state.nested
    for _ in range(2):  # the second time changes nothing
        unpack_scales(layer)
        assert not layer.weight.quant_state.nested
        assert torch.equal(dequantize_4bit(layer.weight, layer.weight.quant_state), before)


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
