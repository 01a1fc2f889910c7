"""Random models and rows for ``fit_speed.py``: Llamas of some shapes, prompts as long as real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from speed_ways import LETTERS
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from calibtune.data.tokens import TokenExample
from calibtune.models.loading import nf4

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
SHAPES = {
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "tiny": (64, 128, 2, 4, 2, 512),
}
#: Prompt lengths of mc_calib_indomain at some quantiles.
QUANTILES = np.array([0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
LENGTHS = np.array([60, 70, 78, 91, 121, 292, 444, 712])
#: Between two quantiles lengths grow by this power, which makes the mean 118, as measured.
BEND = 1.65
#: Tokens at the beginning that all prompts share.
SHARED = 28


def make_rows(count: int, vocabulary: int, mean: float | None) -> list[TokenExample]:
    """Random prompts with the task's lengths, scaled to a mean where one is given."""
    rng = np.random.default_rng(0)
    u = rng.permutation((np.arange(count) + 0.5) / count)
    part = np.searchsorted(QUANTILES, u, side="right") - 1
    place = (u - QUANTILES[part]) / (QUANTILES[part + 1] - QUANTILES[part])
    lengths = LENGTHS[part] * (LENGTHS[part + 1] / LENGTHS[part]) ** (place**BEND)
    lengths = np.rint(lengths * (mean / lengths.mean() if mean else 1)).astype(int)
    shared = rng.integers(vocabulary, size=SHARED).tolist()
    return [
        TokenExample((*shared, *rng.integers(vocabulary, size=n - SHARED).tolist()), LETTERS, int(rng.integers(4)), i)
        for i, n in enumerate(lengths)
    ]


def build(shape: str, quantization: str, device: torch.device) -> Any:
    """A Llama with random weights, made on the device."""
    config = LlamaConfig(**dict(zip(FIELDS, SHAPES[shape], strict=True)), max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device("meta" if quantization == "nf4" else device):
        base = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    if quantization == "nf4":
        fill_nf4(base, device)
    base.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)  # frequencies in float32
    return base.requires_grad_(False)


def fill_nf4(base: Any, device: torch.device) -> None:
    """Give a model on the meta device random weights, its body's linear layers in NF4, one at a time."""
    import bitsandbytes as bnb
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers import AutoHfQuantizer
    from transformers.utils.quantization_config import QuantizationMethod

    quantized = nf4(torch.bfloat16)
    replace_with_bnb_linear(base, modules_to_not_convert=["lm_head"], quantization_config=quantized)
    for module in base.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            value = torch.empty(old.shape, dtype=torch.bfloat16, device=device)
            value = value.fill_(1) if old.dim() == 1 else value.normal_(std=0.02)
            four_bit = isinstance(old, bnb.nn.Params4bit)
            new = bnb.nn.Params4bit(value, requires_grad=False, **old.__dict__).to(device) if four_bit else value
            setattr(module, name, new if four_bit else torch.nn.Parameter(new, requires_grad=False))
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # see calibtune.models.loading.load_base
    # What transformers and PEFT know a loaded 4-bit model by.
    base.is_loaded_in_4bit = base.is_quantized = True
    base.quantization_method = QuantizationMethod.BITS_AND_BYTES
    base.hf_quantizer = AutoHfQuantizer.from_config(quantized)
    base.config.quantization_config = quantized


def body_size(shape: str) -> int:
    """Parameters of the body's linear layers."""
    width, mlp, layers, heads, kv_heads, _ = SHAPES[shape]
    return layers * width * (2 * width + 2 * width // heads * kv_heads + 3 * mlp)
