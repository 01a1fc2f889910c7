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

    A gradient that a process lacks, since none of its questions took that expert, counts as 0.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained]
    mean = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(mean)
    mean /= distributed.get_world_size()
    for weight, part in zip(trained, mean.split([weight.numel() for weight in trained]), strict=True):
        weight.grad = part.view_as(weight)


def share_weights(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Give all processes the first one's trained weights."""
    for weight in parameters:
        if weight.requires_grad:
            distributed.broadcast(weight.data, src=0)
