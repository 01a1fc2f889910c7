"""Compute keys and values of a prefix that many prompts share once, and reuse them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

#: Cache layers that can be repeated for several prompts.
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
#: A shorter prefix, in tokens, saves less than its own forward pass costs.
SHORTEST_PREFIX = 16


def common(first: tuple[int, ...], second: tuple[int, ...], spare: int = 1) -> int:
    """Return the length of the common prefix of two prompts without their last ``spare`` tokens.

    Example:
        >>> common((1, 2, 3, 4), (1, 2, 5, 6)), common((1, 2, 3), (1, 2, 3, 4))
        (2, 2)
    """
    length = max(min(len(first), len(second)) - spare, 0)
    return next((i for i in range(length) if first[i] != second[i]), length)


def prefix_cache(
    forward: Callable[..., Any], tokens: tuple[int, ...], device: Any, keeps_logits: bool
) -> DynamicCache | None:
    """Compute the keys and values of a prefix.

    Args:
        forward: The model's forward function, which takes token ids of shape (1, T).
        tokens: The T tokens of the prefix.
        device: Device of the model.
        keeps_logits: See :func:`calibtune.models.heads.keeps_logits`.

    Returns:
        The cache, or None if the model uses a kind of cache that may not be repeatable.
    """
    with torch.no_grad():
        few = {"logits_to_keep": 1} if keeps_logits else {}
        output = forward(torch.tensor([tokens], device=device), use_cache=True, **few)
    cache: Any = getattr(output, "past_key_values", None)
    # Hybrid models use the same cache class with other layers, which cannot be repeated.
    if type(cache) is not DynamicCache or any(type(layer) not in LAYERS for layer in cache.layers):
        return None
    return cache


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """Return a copy of a cache for ``rows`` prompts, because a forward pass appends to it."""
    past = copy.deepcopy(cache)
    past.batch_repeat_interleave(rows)
    return past
