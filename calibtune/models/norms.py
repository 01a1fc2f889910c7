"""Compute a model's RMS norms in one kernel on a GPU; transformers' code takes six."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch.nn import functional


def fuse_norms(model: Any) -> None:
    """Replace the RMS norms of a model that is only scored by PyTorch's.

    In float32 both are the same to its precision. In bfloat16 PyTorch's rounds once, transformers' twice. PyTorch 2.6
    rounds twice as well, and versions before 2.9 take several kernels.

    Args:
        model: The loaded model. Norms by another formula, such as Gemma's, stay as they are.
    """
    plain: dict[type, bool] = {}
    for module in model.modules():
        if "forward" in vars(module):  # accelerate's own, where it moves weights
            continue
        kind = type(module)
        if kind not in plain:
            plain[kind] = _is_plain(module)
        if plain[kind]:
            module.forward = partial(_fused, module)


def _is_plain(module: Any) -> bool:
    """Return whether a norm of transformers' own gives what PyTorch's does, tried on random numbers on the CPU."""
    kind = type(module)
    if not kind.__module__.startswith("transformers.models.") or not kind.__name__.endswith("RMSNorm"):
        return False
    if not hasattr(module, "variance_epsilon") or [*dict(module.named_parameters())] != ["weight"]:
        return False
    draw = torch.Generator().manual_seed(0)
    try:
        tried = copy.deepcopy(module).to("cpu", torch.float32)
        tried.weight.data = torch.randn(tried.weight.shape, generator=draw)
        # So small that the epsilon counts.
        states = 0.003 * torch.randn(2, 3, len(tried.weight), generator=draw)
        with torch.no_grad():
            return torch.allclose(tried(states), _fused(tried, states), rtol=1e-4)
    # A model's code may want other arguments, or fail where its weights are elsewhere.
    except Exception:
        return False


def _fused(norm: Any, states: torch.Tensor) -> torch.Tensor:
    """Return ``states / sqrt(mean(states**2) + epsilon) * weight`` over the last axis."""
    weight: torch.Tensor = norm.weight
    if states.dtype != weight.dtype:
        found: torch.Tensor = type(norm).forward(norm, states)
        return found
    return functional.rms_norm(states, weight.shape, weight, norm.variance_epsilon)
