"""Add LoRA's share to a layer's output within its own matrix product.

PEFT copies a layer's output, multiplies LoRA's share by its scaling and adds the two, each time through
the whole of both. On a GPU that takes longer than the product itself, whose inner size is the rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners import lora

#: Classes of base layers that this serves, of torch and bitsandbytes. Others may return a view, or take more than one
#: argument.
SERVED = {("torch.nn.modules.linear", "Linear"), ("bitsandbytes.nn.modules", "Linear4bit")}


@contextmanager
def lora_in_product(model: Any, active: bool = True) -> Iterator[None]:
    """Compute the LoRA layers of a model so while the context lasts.

    What is computed is the same: ``W x + b + scaling * B A dropout(x)``. Layers of other kinds, with
    several adapters, with a bias of LoRA's own or with a variant such as DoRA stay PEFT's.

    Args:
        model: A model with an adapter; its weights must be whole on this device.
        active: Whether to do anything.
    """
    layers = [layer for layer in model.modules() if active and _is_served(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_served(layer: torch.nn.Module) -> bool:
    if not isinstance(layer, lora.LoraLayer) or "forward" in vars(layer):
        return False
    kind, names = type(layer.get_base_layer()), layer.active_adapters
    plain = len(names) == 1 and names[0] in layer.lora_A and not layer.lora_variant and not layer.merged
    return plain and (kind.__module__, kind.__name__) in SERVED and layer.lora_B[names[0]].bias is None


def _forward(layer: Any, states: torch.Tensor) -> torch.Tensor:
    (name,) = layer.active_adapters
    first, second = layer.lora_A[name], layer.lora_B[name].weight
    # Without autocast PEFT casts inputs to the adapter's type.
    casts = first.weight.dtype != states.dtype and not torch.is_autocast_enabled(states.device.type)
    if layer.disable_adapters or casts:
        return type(layer).forward(layer, states)
    # Of two dimensions, so that the output is no view, which autograd would copy when it is changed.
    rows = states.flatten(0, -2)
    output = layer.base_layer(rows)
    small = first(layer.lora_dropout[name](rows)).to(output.dtype)
    output.addmm_(small, second.to(output.dtype).t(), alpha=layer.scaling[name])
    return output.unflatten(0, states.shape[:-1])
