"""Keys and values of what many prompts begin with, computed once and put before each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

#: Layers of a cache that can be repeated.
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
#: Prefixes shorter than this are not worth a forward pass of their own.
SHORTEST_PREFIX = 16


def common(first: tuple[int, ...], second: tuple[int, ...], spare: int = 1) -> int:
    """Tokens that two prompts begin with, the last ``spare`` of each left aside.

    Example:
        >>> common((1, 2, 3, 4), (1, 2, 5, 6)), common((1, 2, 3), (1, 2, 3, 4))
        (2, 2)
    """
    length = max(min(len(first), len(second)) - spare, 0)
    return next((i for i in range(length) if first[i] != second[i]), length)


def prefix_cache(
    forward: Callable[..., Any], tokens: tuple[int, ...], device: Any, keeps_logits: bool
) -> DynamicCache | None:
    """Keys and values of a prefix.

    Args:
        forward: The model's, taking ids of shape (1, T).
        tokens: The prefix.
        device: Where the model lies.
        keeps_logits: See :func:`calibtune.models.heads.keeps_logits`.

    Returns:
        None where the model keeps another kind of cache, which may not be repeatable.
    """
    with torch.no_grad():
        few = {"logits_to_keep": 1} if keeps_logits else {}
        output = forward(torch.tensor([tokens], device=device), use_cache=True, **few)
    cache: Any = getattr(output, "past_key_values", None)
    # Hybrid models keep other layers, which cannot be repeated, in the same class of cache.
    if type(cache) is not DynamicCache or any(type(layer) not in LAYERS for layer in cache.layers):
        return None
    return cache


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """A copy for as many prompts; a forward pass appends to what it is given."""
    past = copy.deepcopy(cache)
    past.batch_repeat_interleave(rows)
    return past
