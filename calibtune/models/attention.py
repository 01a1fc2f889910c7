"""Choose the attention kernels of passes whose batches have many shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def attention_of_any_shape() -> Iterator[None]:
    """Leave out cuDNN's attention kernels while the context lasts, also as a decorator.

    PyTorch prefers them on an H100 or H200. cuDNN makes a plan for each shape of a batch that it has not met, which
    takes longer than the pass itself; FlashAttention's and the memory-efficient kernels take any shape.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
