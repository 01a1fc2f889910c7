"""Average gradients over processes that each hold the whole model (data parallel).

PyTorch's DistributedDataParallel keeps references to the gradients' nodes, which rule out a CUDA graph
of the backward pass. An adapter's gradients are small, so one call after the pass costs little.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import distributed


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; all must call it with the same parameters.

    A gradient that a process lacks, since none of its questions took that expert, counts as 0; one that
    all lack stays away, as in one process, where the optimizer then leaves the weight alone.
    """
    trained = [weight for weight in parameters if weight.requires_grad]
    lacks = [weight.grad is None for weight in trained]
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained]
    has = torch.tensor(lacks, device=gradients[0].device).logical_not().to(gradients[0].dtype)
    mean = torch.cat([*(gradient.flatten() for gradient in gradients), has])
    distributed.all_reduce(mean)
    mean /= distributed.get_world_size()
    *parts, has = mean.split([*(weight.numel() for weight in trained), len(trained)])
    anywhere = has.tolist() if any(lacks) else [1.0] * len(trained)
    for weight, part, share in zip(trained, parts, anywhere, strict=True):
        weight.grad = part.view_as(weight) if share else None


def share_weights(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Give all processes the first one's trained weights."""
    for weight in parameters:
        if weight.requires_grad:
            distributed.broadcast(weight.data, src=0)
