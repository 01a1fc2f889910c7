"""An adapted linear layer as one step of autograd, with half of PEFT's passes over the layer's output.

PEFT computes ``x W^T``, copies it (over a 4-bit base), computes ``x A^T B^T``, scales that and adds it, and as much
again for the gradients. The adapter stays PEFT's own: its weights, saving and merging are untouched.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch.nn import functional


class LoraLinear(torch.autograd.Function):
    """``x W^T + bias + s (x A^T) B^T`` (Hu et al. 2021, LoRA, Eq 3), with gradients to x, A and B.

    W is asked for in each direction, so that a 4-bit base is never kept in full.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: torch.nn.Linear, scaling: float
    ) -> torch.Tensor:
        """Shapes: x (..., I), A (R, I), B (O, R), all of one type; gives (..., O)."""
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.T
        bias = None if base.bias is None else base.bias.to(x.dtype)
        out = functional.linear(flat, base_weight(base, x.dtype), bias).addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(flat, low, a, b)
        ctx.base, ctx.scaling = base, scaling
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients to x, A and B."""
        flat, low, a, b = ctx.saved_tensors
        shape = gradients[0].shape
        gradient = gradients[0].reshape(-1, shape[-1])
        to_low = (gradient @ b).mul_(ctx.scaling)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient @ base_weight(ctx.base, gradient.dtype)).addmm_(to_low, a).view(*shape[:-1], a.shape[1])
        return to_x, to_low.T @ flat, gradient.T @ low.mul(ctx.scaling), None, None


def base_weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """A base layer's weight, shape (O, I), taken out of 4 bits where it is held so."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight, state).to(dtype)


def fuse(model: torch.nn.Module) -> int:
    """Let a model's adapted linear layers compute by :class:`LoraLinear`, in place, where that is the same.

    Args:
        model: With one of PEFT's adapters.

    Returns:
        How many do; what is not a plain LoRA layer (DoRA, dropout, 8 bits, several adapters) stays PEFT's.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)
        unpack_scales(layer.base_layer)
    return len(layers)


def unpack_scales(base: Any) -> None:
    """Keep a 4-bit layer's block scales in float32, which each pass would else unpack from QLoRA's double quantization.

    The weights stay as they are, and take .37 bits more each.
    """
    state = getattr(base.weight, "quant_state", None)
    if state is None or not state.nested:
        return
    from bitsandbytes.functional import dequantize_blockwise

    state.absmax = dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    state.nested, state.state2, state.offset = False, None, None


def _is_plain(layer: Any) -> bool:
    base, names = layer.base_layer, layer.active_adapters
    known = (type(base) is torch.nn.Linear and type(layer) is Linear) or type(base).__name__ == "Linear4bit"
    if not known or base.weight.requires_grad or len(names) != 1 or names[0] not in layer.lora_A:
        return False
    a, b = layer.lora_A[names[0]], layer.lora_B[names[0]]
    dropout = not isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
    return not dropout and a.bias is None and b.bias is None and names[0] not in layer.lora_variant


def _forward(layer: Any, plain: Any, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or args or options or len(layer.active_adapters) != 1:
        return plain(x, *args, **options)
    (name,) = layer.active_adapters
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    if not autocast and a.dtype != dtype:
        return plain(x)  # PEFT computes a float32 adapter in float32, as wherever a finished one is evaluated
    return LoraLinear.apply(x.to(dtype), a.to(dtype), b.to(dtype), layer.base_layer, layer.scaling[name])
