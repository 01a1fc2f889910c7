"""``--cuda-graphs``: the forward and backward pass of a batch launched as one, for small models.

A step of a small model is thousands of kernels that run faster than they can be launched one by one. A CUDA graph
records them once for each shape of batch; see https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
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

#: Prompts are padded to a multiple of this, so that there are few shapes.
BUCKET = 64
#: Relative distance of a recording's gradients from the plain pass's that bfloat16 and other kernels may cause.
APART = 0.05

logger = logging.getLogger(__name__)

#: SDPA that is causal without a mask. While a graph is recorded transformers would make a mask, which keeps attention
#: from the fast kernels; fits with such masks ended in gradients that are not numbers (Qwen2.5 on an H200, torch 2.11),
#: for which the mask is the likely reason, not a proven one.
CAUSAL = "calibtune-causal-sdpa"
AttentionInterface.register(CAUSAL, sdpa_attention_forward)

Outputs = tuple[torch.Tensor, ...]
Shapes = tuple[torch.Size, ...]


@contextmanager
def causal_attention(model: Any) -> Iterator[None]:
    """Attention that is causal without a mask, where the model uses SDPA; prompts must be padded on the right."""
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
    """A graph, the tensors that it reads and those that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch
    outputs: Outputs


class StepGraphs:
    """Forward and backward pass of batches, recorded at the second batch of each shape.

    Args:
        model: Its trainable parameters' gradients are added to, as ``backward`` does.
        loss: Gives a batch's loss, whose gradient is taken, and what else is wanted; must not wait for the GPU.
        longest: Tokens of the longest prompt.

    Raises:
        UserError: Attention of the model does not reach over the longest prompt.
    """

    def __init__(self, model: Any, loss: Callable[[Batch], Outputs], longest: int) -> None:
        config = model.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        window = min((length for length in windows if length), default=longest)
        if window < longest:
            raise UserError(
                f"--cuda-graphs: the model attends over {window} tokens and a prompt has {longest}; leave it out"
            )
        self.model, self.loss = model, loss
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A graph writes to the memory that it was recorded with, so the gradients stay where they are: views of one
        # tensor, which one kernel clears or copies.
        first = self.parameters[0]
        sizes = [parameter.numel() for parameter in self.parameters]
        self.gradient = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        views = zip(self.gradient.split(sizes), self.parameters, strict=True)
        self.gradients = [view.view_as(parameter) for view, parameter in views]
        #: By the batch's shapes; None where a recording gave other gradients than the plain pass, which is then taken.
        self.recordings: dict[Shapes, Recording | None] = {}
        #: Shapes met once so far.
        self.met: set[Shapes] = set()

    def run(self, batch: Batch) -> Outputs:
        """Add a batch's gradients; what the loss gives, detached."""
        if any(parameter.grad is None for parameter in self.parameters):
            self.gradient.zero_()
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                parameter.grad = gradient
        shapes = tuple(batch[name].shape for name in sorted(batch))
        if shapes not in self.met:
            self.met.add(shapes)  # the longest prompts' may not come again
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
        """Take a batch plainly, and record the same pass for its shapes if that gives the same gradients."""
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
            logger.warning("--cuda-graphs: a recording of %s tokens gave other gradients; they are not recorded", shape)
        self.recordings[shapes] = recording if alike else None
        self.gradient.copy_(before + plain)
        return outputs

    def _record(self, batch: Batch) -> Recording:
        """A recording of a pass; one that was taken just before gave libraries their workspaces."""
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
