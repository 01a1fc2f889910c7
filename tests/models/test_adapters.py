"""Unpacked scales of 4-bit weights."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from fitting import small_recipe
from tiny import save_tiny

from calibtune.models.adapters import unpack_scales
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
