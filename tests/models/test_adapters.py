"""Adapters that PEFT saved, and unpacked scales of 4-bit weights."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from fitting import small_recipe
from tiny import save_tiny

from calibtune.models.adapters import load_adapter, unpack_scales
from calibtune.models.loading import load_base


@pytest.fixture
def four_bit(tmp_path):
    return small_recipe(save_tiny(tmp_path / "model", hidden=64), "cft", quantization="nf4")


def test_unpacking_scales_keeps_the_4_bit_weights(four_bit):
    layer = load_base(four_bit.spec).model.layers[0].mlp.down_proj
    before = dequantize_4bit(layer.weight, layer.weight.quant_state)
    assert layer.weight.quant_state.nested
    for _ in range(2):  # the second time changes nothing
        unpack_scales(layer)
        assert not layer.weight.quant_state.nested
        assert torch.equal(dequantize_4bit(layer.weight, layer.weight.quant_state), before)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoraConfig", {"use_dora": True}),
        (
            "LoraConfig",
            {"use_rslora": True, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
        ),
        ("LoraConfig", {"trainable_token_indices": [1, 2]}),
        ("LoHaConfig", {}),
        ("VeraConfig", {}),
        ("LNTuningConfig", {"target_modules": ["norm"]}),
    ],
)
def test_what_peft_saved_is_loaded_whole_whatever_its_kind(model, tmp_path, kind, options):
    import peft
    from transformers import AutoModelForCausalLM

    def base():
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    config = getattr(peft, kind)(**{"target_modules": ["q_proj", "v_proj"], **options})
    saved = peft.get_peft_model(base(), config)
    for weight in saved.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.05)
    saved.eval().save_pretrained(tmp_path / "adapter")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        found, expected = load_adapter(base(), tmp_path / "adapter").eval()(ids).logits, saved(ids).logits
    assert torch.equal(found, expected)
