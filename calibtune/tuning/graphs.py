"""Run forward and backward pass as one CUDA graph, where launching kernels takes longer than computing.

A step of a small model or batch is thousands of kernels that run faster than they can be launched
one by one. A CUDA graph records them once for each shape of batch and launches them together; see
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Long batches compute for longer
than they take to launch, so they are not recorded: a recording would only cost time and memory.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from calibtune.errors import UserError, WorkFailed, reason
from calibtune.models.heads import Batch
from calibtune.recipe import Recipe
from calibtune.tuning.checks import DENSE

#: First recordings whose gradients are compared with those of a pass without a graph.
CHECKED = 3
#: Largest accepted relative distance between gradients with and without a graph; bfloat16 and other
#: kernels cause small ones.
APART = 0.05
#: If the GPU computes for more than this share of a pass after the last kernel was launched,
#: computing takes longer than launching: up to 1,024 of several thousand kernels then wait in its
#: queue, otherwise a few.
LAG = 0.05
#: Share of the GPU's memory that recordings leave free, for scoring between epochs.
SPARE = 0.1

logger = logging.getLogger(__name__)

#: Name of SDPA attention that is causal without a mask. In a pass without a graph, transformers
#: waits for the GPU to see whether prompts are packed. While a graph is recorded, it would create a
#: mask, which rules out the fast attention kernels. Fits with such masks also ended in NaN gradients
#: (Qwen2.5 on an H200, torch 2.11), probably because of the mask.
CAUSAL = "calibtune-causal-sdpa"
AttentionInterface.register(CAUSAL, sdpa_attention_forward)

Outputs = tuple[torch.Tensor, ...]
Shapes = tuple[torch.Size, ...]


def graphs_serve(model: Any, recipe: Recipe) -> bool:
    """Return whether a fit takes CUDA graphs where its recipe says neither.

    Args:
        model: The model with its adapter, on its device.
        recipe: The recipe of the fit.
    """
    config, device = model.config, next(model.parameters()).device
    known = config.model_type in DENSE and config._attn_implementation == "sdpa" and not recipe.trust_remote_code
    plain = not recipe.gradient_checkpointing and recipe.tuning == "lora"
    return device.type == "cuda" and known and plain


def shortest_window(model: Any) -> float:
    """Return the number of tokens that the model attends over; infinity without a limit."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((length for length in windows if length), default=float("inf"))


def attention_configs(model: Any) -> list[Any]:
    """Return the configurations of a model and of the models in it that ask for SDPA attention."""
    configs = {id(inner.config): inner.config for inner in _models(model)}.values()
    return [config for config in configs if config._attn_implementation == "sdpa"]


def is_causal_without_mask(model: Any) -> bool:
    """Return whether a model's attention is known to be causal and nothing more: transformers' own code of ``DENSE``.

    With SDPA, some others add numbers of their own through the mask.
    """
    own = all(type(inner).__module__.startswith("transformers.models.") for inner in _models(model))
    return own and model.config.model_type in DENSE


def _models(model: Any) -> list[PreTrainedModel]:
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


@contextmanager
def causal_attention(configs: Sequence[Any]) -> Iterator[None]:
    """Replace SDPA by causal attention without a mask; prompts must be padded on the right.

    Args:
        configs: Of :func:`attention_configs`. ``set_attn_implementation`` would visit all modules in each pass, and
            like the setter of ``_attn_implementation`` change configurations below that ask for something else.
    """
    for config in configs:
        config._attn_implementation_internal = CAUSAL
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation_internal = "sdpa"


@dataclass(frozen=True)
class Recording:
    """Hold a CUDA graph with its input and output tensors."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch
    outputs: Outputs


class StepGraphs:
    """Run forward and backward passes; record each shape once that takes longer to launch than to compute.

    Args:
        model: The model, whose gradients are accumulated as ``backward`` does.
        loss: Function that returns a batch's loss and any other tensors; it must not wait for the
            GPU.
        longest: Number of tokens of the longest prompt.

    Raises:
        UserError: The model's attention window is shorter than the longest prompt.
    """

    def __init__(self, model: Any, loss: Callable[[Batch], Outputs], longest: int) -> None:
        if (window := shortest_window(model)) < longest:
            raise UserError(
                f"--cuda-graphs cannot be used: the model attends over {window} tokens and a prompt has {longest}; "
                "leave it out"
            )
        self.loss, self.configs = loss, attention_configs(model)
        #: What passes take that are not recorded.
        self.unmasked = self.configs if is_causal_without_mask(model) else []
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A graph writes to the memory that it was recorded with, so the gradients must keep their
        # memory. They are views of one tensor, which one kernel clears or copies.
        first = self.parameters[0]
        sizes = [parameter.numel() for parameter in self.parameters]
        self.gradient = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        views = zip(self.gradient.split(sizes), self.parameters, strict=True)
        self.gradients = [view.view_as(parameter) for view, parameter in views]
        self.recordings: dict[Shapes, Recording] = {}
        #: Whether passes are recorded; no longer once one was wrong, or memory is short.
        self.records = True
        #: Most tokens of a measured pass that took longer to launch than to compute, and fewest of
        #: one that took longer to compute.
        self.launching, self.computing = 0, math.inf
        #: Whether a pass has run; libraries compile in the first one, so that it measures nothing.
        self.warm = False

    def may_record(self, tokens: float) -> bool:
        """Return whether passes of so many tokens, padding counted, are recorded when they are met again."""
        return self.records and tokens < self.computing

    def run(self, batch: Batch, few_shapes: bool = True) -> Outputs:
        """Accumulate a batch's gradients and return the outputs of ``loss``, detached.

        Args:
            batch: B questions.
            few_shapes: Whether it has one of a few shapes, so that a recording of it serves again.
        """
        if any(parameter.grad is None for parameter in self.parameters):
            self.gradient.zero_()
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                parameter.grad = gradient
        if not few_shapes:
            return self._pass(batch)
        shapes = tuple(batch[name].shape for name in sorted(batch))
        if shapes not in self.recordings:
            tokens = batch["input_ids"].numel()
            if not self.may_record(tokens) or not self.warm:
                self.warm = True
                return self._pass(batch)
            if tokens > self.launching:
                return self._measured(batch)
            # The first recordings are compared, which also lets libraries take their workspaces.
            if len(self.recordings) < CHECKED:
                return self._compared(shapes, batch)
            if not self._keep(shapes, batch):
                return self._pass(batch)
        recording = self.recordings[shapes]
        for name, value in recording.inputs.items():
            value.copy_(batch[name])
        recording.graph.replay()
        return tuple(output.clone() for output in recording.outputs)

    def _measured(self, batch: Batch) -> Outputs:
        """Run a batch without a graph, and note whether launching or computing took longer."""
        tokens = batch["input_ids"].numel()
        self._wait()
        started = time.perf_counter()
        outputs = self._pass(batch)
        launched = time.perf_counter()
        self._wait()
        ended = time.perf_counter()
        if ended - launched > LAG * (ended - started):
            self.computing = tokens
        else:
            self.launching = tokens
        return outputs

    def _compared(self, shapes: Shapes, batch: Batch) -> Outputs:
        """Run a batch without a graph, record it, and stop recording if the gradients differ."""
        before = self.gradient.clone()
        self.gradient.zero_()
        random = torch.cuda.get_rng_state() if self.gradient.is_cuda else None
        outputs = self._pass(batch, [])
        plain = self.gradient.clone()
        if self._keep(shapes, batch):
            self.gradient.zero_()
            if random is not None:
                torch.cuda.set_rng_state(random)  # dropout draws the same numbers as in the pass without a graph
            self.recordings[shapes].graph.replay()
            apart = (self.gradient - plain).norm() / plain.norm()
            # A loss that is not finite ends the fit with a message of its own.
            if not bool(apart <= APART) and plain.any() and plain.isfinite().all():
                shape = "x".join(map(str, batch["input_ids"].shape))
                self._stop(f"one of {shape} tokens gave wrong gradients")
        self.gradient.copy_(before + plain)
        return outputs

    def _wait(self) -> None:
        """Wait until the GPU has computed all that was launched."""
        if self.gradient.is_cuda:
            torch.cuda.synchronize(self.gradient.device)

    def _keep(self, shapes: Shapes, batch: Batch) -> bool:
        """Record a pass, and return whether it can be replayed.

        Raises:
            WorkFailed: The pass cannot be recorded. PyTorch 2.11 then neither frees memory nor draws
                random numbers any more, so that the process cannot go on.
        """
        try:
            self.recordings[shapes] = self._record(batch)
        except torch.OutOfMemoryError:
            self._stop("the GPU's memory does not hold them")
        # Libraries and devices name in errors of their own what cannot be recorded.
        except Exception as error:
            raise WorkFailed(
                f"a CUDA graph of a training step could not be recorded ({reason(error)}); run the same command with "
                "--resume --no-cuda-graphs"
            ) from error
        else:
            if self.gradient.is_cuda and (free := torch.cuda.mem_get_info())[0] < SPARE * free[1]:
                self._stop(f"they leave {free[0] / 2**30:.1f} GiB of the GPU's memory free")
        return self.records

    def _stop(self, why: str) -> None:
        """Give the recordings' memory back and run without graphs from here on."""
        logger.warning("the fit goes on without CUDA graphs: %s", why)
        self.records = False
        self.recordings.clear()
        if self.gradient.is_cuda:
            torch.cuda.empty_cache()

    def _record(self, batch: Batch) -> Recording:
        inputs = {name: value.clone() for name, value in batch.items()}
        graph = torch.cuda.CUDAGraph()
        pool = next((recording.graph.pool() for recording in self.recordings.values()), None)
        # Other threads, such as NCCL's, may ask the GPU while this one records.
        record = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
        with record:
            outputs = self._pass(inputs, self.configs)
        return Recording(graph, inputs, outputs)

    def _pass(self, inputs: Batch, unmasked: Sequence[Any] | None = None) -> Outputs:
        """Run a batch; ``unmasked`` are the configurations whose attention takes no mask, None for the usual ones."""
        with causal_attention(self.unmasked if unmasked is None else unmasked):
            outputs = self.loss(inputs)
            outputs[0].backward()
        return tuple(output.detach() for output in outputs)
