"""Weights in few bits: name those of a checkpoint, find layers that cannot be held so, make plain ones again."""

from __future__ import annotations

import contextlib
import inspect
import re
from functools import cache
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from calibtune.errors import UserError
from calibtune.spec import ModelSpec

#: Types of 4-bit weights of bitsandbytes, from which plain ones with the same answers are made.
FOUR_BITS = ("nf4", "fp4")


def held_as(config: Any) -> str | None:
    """Return how a checkpoint's own files hold its weights: "nf4", "fp4", "int8" or a method such as "gptq".

    Returns:
        None where they are not quantized.
    """
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    values = found if isinstance(found, dict) else found.to_dict()
    if values.get("load_in_4bit"):
        return str(values.get("bnb_4bit_quant_type", "fp4"))
    return "int8" if values.get("load_in_8bit") else str(values.get("quant_method", "an unknown type"))


def check_held(spec: ModelSpec, config: Any) -> None:
    """Refuse to quantize a checkpoint that is quantized in another way.

    Raises:
        UserError: With its type.
    """
    held = held_as(config)
    if spec.quantization != "none" and held not in (None, spec.quantization):
        raise UserError(
            f"--quantization {spec.quantization}: {spec.name} holds its weights in {held} already; leave it out, or "
            "give the original model"
        )


def check_plain(spec: ModelSpec, config: Any) -> None:
    """Refuse a checkpoint of whose weights no plain ones can be made.

    Raises:
        UserError: With their type.
    """
    held = held_as(config)
    if held is not None and held not in FOUR_BITS:
        raise UserError(
            f"{spec.name} holds its weights in {held}, and transformers makes no plain weights with the same answers "
            "of them; serve the base with the artifact, or fit again on the original model"
        )


def four_bit(model: Any) -> set[str]:
    """Return the names of layers that bitsandbytes holds in 4 bits."""
    weights = ((name, getattr(layer, "weight", None)) for name, layer in model.named_modules())
    return {name for name, weight in weights if type(weight).__name__ == "Params4bit"}


def mismatched(model: Any) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Return 4-bit weights of other shapes than their layers': name, shape and the layer's shape."""
    found: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
    for name in four_bit(model):
        layer = model.get_submodule(name)
        shape, wanted = tuple(layer.weight.quant_state.shape), (layer.out_features, layer.in_features)
        if shape != wanted:
            found.add((f"{name}.weight", shape, wanted))
    return found


def keep_exact(model: Any) -> None:
    """Keep 4-bit layers from bitsandbytes' kernel for CPUs with AVX512-BF16, which rounds to bfloat16.

    bitsandbytes 0.50 repacks the weights for it at the first pass without gradients. The kernel computes no gradients,
    and adapters that are loaded or trained after that find other weights.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def passed_by(model: Any) -> set[str]:
    """Return the names of linear layers whose weights the model's code reads instead of calling them.

    State-space models do, for their fused kernels. There the code would find packed bits, and miss an adapter.
    """
    found = set()
    for name, module in model.named_modules():
        linear = [child for child, layer in module.named_children() if isinstance(layer, (torch.nn.Linear, Conv1D))]
        code = _code(type(module)) if linear else ""  # type: ignore[arg-type]
        read = [child for child in linear if re.search(rf"self\.{child}\.weight(,|\)| @|\.T\b|\.t\(|\.type\()", code)]
        found |= {f"{name}.{child}".lstrip(".") for child in read}
    return found


@cache
def _code(kind: type[Any]) -> str:
    """Return the source of what a module's class defines, but for what fills its weights."""
    parts = []
    for name, item in vars(kind).items():
        if inspect.isfunction(item) and "init" not in name:
            with contextlib.suppress(OSError, TypeError):
                parts.append(inspect.getsource(item))
    return "\n".join(parts)


def plain(model: Any) -> Any:
    """Return a model of 4-bit weights with plain weights that give the same answers, in layers of its own kind."""
    transposed = [name for name in four_bit(model) if model.get_submodule(name).source_cls is Conv1D]
    model = model.dequantize()
    # transformers leaves Linear layers there, whose weights a Conv1D has the other way round.
    for name in transposed:
        linear = model.get_submodule(name)
        layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight, layer.bias = torch.nn.Parameter(linear.weight.T.contiguous()), linear.bias
        model.set_submodule(name, layer)
    return model
