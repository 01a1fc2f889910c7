"""Average gradients over processes that each hold the whole model (data parallel), and list the trained weights.

PyTorch's DistributedDataParallel keeps references to the gradients' nodes, which rule out a CUDA graph
of the backward pass. An adapter's gradients are small, so one call after the pass costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed


def average(values: torch.Tensor) -> None:
    """Replace values by their means over all processes, in place, because an 8B's adapter has 1.3 GB of gradients."""
    if distributed.get_backend() == "nccl":
        distributed.all_reduce(values, distributed.ReduceOp.AVG)
    else:  # gloo has no mean
        distributed.all_reduce(values)
        values /= distributed.get_world_size()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; all must call it with the same parameters.

    A gradient that a process lacks, since none of its questions took that expert, counts as 0; one that
    all lack stays away, as in one process, where the optimizer then leaves the weight alone.
    """
    trained = [weight for weight in parameters if weight.requires_grad]
    here = [weight.grad is not None for weight in trained]
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained]
    # A list is copied from the CPU, which waits until the GPU has computed the pass.
    shares = gradients[0].new_ones(len(here)) if all(here) else gradients[0].new_tensor(here)
    mean = torch.cat([*(gradient.flatten() for gradient in gradients), shares])
    average(mean)
    *parts, shares = mean.split([*(weight.numel() for weight in trained), len(trained)])
    # Reading them waits for the GPU.
    anywhere = here if all(here) else shares.tolist()
    for weight, part, somewhere in zip(trained, parts, anywhere, strict=True):
        weight.grad = part.view_as(weight) if somewhere else None


def share_weights(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Give all processes the first one's trained weights."""
    for weight in parameters:
        if weight.requires_grad:
            distributed.broadcast(weight.data, src=0)


@contextmanager
def listed_once(model: Any, active: bool = True) -> Iterator[None]:
    """Let ``model.parameters()`` give the trained weights from a list while the context lasts.

    Trainer calls it twice a step, to clip gradients and to clear them. Each time it visits thousands of
    modules, during which the GPU of a small model has nothing to do.

    Args:
        model: The model to train; which weights are trained must not change.
        active: Whether to do anything.
    """
    if active:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        model.parameters = lambda recurse=True: iter(trained)
    try:
        yield
    finally:
        if active:
            del model.parameters
