"""Run forward and backward pass as one CUDA graph, to speed up small models (``--cuda-graphs``).

A step of a small model is thousands of kernels that run faster than they can be launched one by
one. A CUDA graph records them once for each shape of batch and launches them together; see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from calibtune.errors import UserError
from calibtune.models.heads import Batch

#: Prompts are padded to a multiple of this many tokens, so that there are few shapes: 21 in a fit of
#: 2,500 questions of mc_calib_indomain and 3 epochs, with 18% of padding. With 64: 13, with 41%.
BUCKET = 32
#: Largest accepted relative distance between gradients with and without a graph; bfloat16 and other
#: kernels cause small ones.
APART = 0.05

logger = logging.getLogger(__name__)

#: Name of SDPA attention that is causal without a mask. While a graph is recorded, transformers
#: would create a mask, which rules out the fast attention kernels. Fits with such masks also ended
#: in NaN gradients (Qwen2.5 on an H200, torch 2.11), probably because of the mask.
CAUSAL = "calibtune-causal-sdpa"
AttentionInterface.register(CAUSAL, sdpa_attention_forward)

Outputs = tuple[torch.Tensor, ...]
Shapes = tuple[torch.Size, ...]


@contextmanager
def causal_attention(model: Any) -> Iterator[None]:
    """Replace SDPA by causal attention without a mask; prompts must be padded on the right."""
    before = model.config._attn_implementation
    if before == "sdpa":
        model.set_attn_implementation(CAUSAL)
    try:
        yield
    finally:
        if before == "sdpa":
            model.set_attn_implementation(before)


@dataclass(frozen=True)
class Recording:
    """Hold a CUDA graph with its input and output tensors."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch
    outputs: Outputs


class StepGraphs:
    """Run forward and backward passes, recorded at the second batch of each shape.

    Args:
        model: The model, whose gradients are accumulated as ``backward`` does.
        loss: Function that returns a batch's loss and any other tensors; it must not wait for the
            GPU.
        longest: Number of tokens of the longest prompt.

    Raises:
        UserError: The model's attention window is shorter than the longest prompt.
    """

    def __init__(self, model: Any, loss: Callable[[Batch], Outputs], longest: int) -> None:
        config = model.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        window = min((length for length in windows if length), default=longest)
        if window < longest:
            raise UserError(
                f"--cuda-graphs cannot be used: the model attends over {window} tokens and a prompt has {longest}; "
                "leave it out"
            )
        self.model, self.loss = model, loss
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A graph writes to the memory that it was recorded with, so the gradients must keep their
        # memory. They are views of one tensor, which one kernel clears or copies.
        first = self.parameters[0]
        sizes = [parameter.numel() for parameter in self.parameters]
        self.gradient = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        views = zip(self.gradient.split(sizes), self.parameters, strict=True)
        self.gradients = [view.view_as(parameter) for view, parameter in views]
        #: Recording for each batch shape; None if its gradients were wrong.
        self.recordings: dict[Shapes, Recording | None] = {}
        #: Shapes seen so far.
        self.met: set[Shapes] = set()

    def run(self, batch: Batch) -> Outputs:
        """Accumulate a batch's gradients and return the outputs of ``loss``, detached."""
        if any(parameter.grad is None for parameter in self.parameters):
            self.gradient.zero_()
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                parameter.grad = gradient
        shapes = tuple(batch[name].shape for name in sorted(batch))
        if shapes not in self.met:
            self.met.add(shapes)  # a rare shape may never come again, so do not record it yet
            return self._pass(batch)
        if shapes not in self.recordings:
            return self._recorded(shapes, batch)
        recording = self.recordings[shapes]
        if recording is None:
            return self._pass(batch)
        for name, value in recording.inputs.items():
            value.copy_(batch[name])
        recording.graph.replay()
        return tuple(output.clone() for output in recording.outputs)

    def _recorded(self, shapes: Shapes, batch: Batch) -> Outputs:
        """Run a batch without a graph, and keep a recording of it if its gradients are the same."""
        before = self.gradient.clone()
        self.gradient.zero_()
        outputs = self._pass(batch)
        plain = self.gradient.clone()
        recording = self._record(batch)
        self.gradient.zero_()
        recording.graph.replay()
        apart = (self.gradient - plain).norm() / plain.norm()
        alike = bool(apart <= APART) or not plain.any()
        if not alike:
            shape = "x".join(map(str, batch["input_ids"].shape))
            logger.warning(
                "--cuda-graphs: a graph for %s tokens gave wrong gradients; such batches run without a graph", shape
            )
        self.recordings[shapes] = recording if alike else None
        self.gradient.copy_(before + plain)
        return outputs

    def _record(self, batch: Batch) -> Recording:
        """Record a pass; the same pass must have run before, so that libraries have workspaces."""
        inputs = {name: value.clone() for name, value in batch.items()}
        graph = torch.cuda.CUDAGraph()
        pool = next((recording.graph.pool() for recording in self.recordings.values() if recording), None)
        with causal_attention(self.model), torch.cuda.graph(graph, pool=pool):
            outputs = self._pass(inputs)
        return Recording(graph, inputs, outputs)

    def _pass(self, inputs: Batch) -> Outputs:
        outputs = self.loss(inputs)
        outputs[0].backward()
        return tuple(output.detach() for output in outputs)
