"""Read logits where they are needed: at the answer's token alone, with the model's own output layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from calibtune.errors import UserError
from calibtune.models.sharding import is_split, own_class

Batch = dict[str, torch.Tensor]
#: What the model itself is given; the rest of a batch is for the loss.
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
#: Weights of the output layer that are held in float32 at a time: 256 MB.
WIDENED = 2**26


def answer_logits(model: Any, batch: Batch, past: Any = None) -> torch.Tensor:
    """Return the logits at each question's last prompt token, and nowhere else; shape (B, V), float32 at least.

    ``past`` holds the keys and values of what comes before the batch's tokens, if anything does.
    """
    return forward(model, batch, past)[0]


def forward(
    model: Any, batch: Batch, past: Any = None, everywhere: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Run one forward pass whose output layer reads only the answer's place, where the model allows it.

    Args:
        model: Causal language model, wrapped or not.
        batch: See :func:`calibtune.data.tokens.collate`.
        past: Keys and values of what comes before the batch's tokens.
        everywhere: Let the model itself make the logits at every token.

    Returns:
        Logits at the answer, shape (B, V), float32 at least; states at every token, shape (B, T, H); and what makes
        logits of them, as the model does if :func:`head_is_last`.
    """
    inputs: dict[str, Any] = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    inputs |= {"past_key_values": past, "use_cache": past is not None}
    head = output_layer(model)
    rows = torch.arange(len(batch["answer"]), device=batch["answer"].device)
    if everywhere or head is None:
        logits = model(**inputs).logits
        check_places(logits, batch["input_ids"])
        return widen(logits[rows, batch["answer"]]), logits, torch.nn.Identity()
    with reading(head, rows, batch["answer"], precise=not is_split(model, head)) as states:
        logits = model(**inputs).logits
    return widen(logits[:, 0]), states[0], head


def check_places(logits: torch.Tensor, input_ids: torch.Tensor) -> None:
    """Refuse logits that are not one row for each token, whose places nobody knows.

    Raises:
        UserError: With both shapes.
    """
    if logits.shape[:2] != input_ids.shape:
        raise UserError(
            f"the model's own code gave logits of shape {tuple(logits.shape)} for tokens of shape "
            f"{tuple(input_ids.shape)}, not one row for each token; letters cannot be read from it"
        )


@contextmanager
def reading(
    head: torch.nn.Module, rows: torch.Tensor, places: torch.Tensor, precise: bool = True
) -> Iterator[list[torch.Tensor]]:
    """Let the output layer read N places alone within the model's own forward pass, in float32.

    bfloat16 has 8 bits: logits near 20 come in steps of 1/8, so that letters tie. What the model makes of the output
    layer's values, such as a cap or a scale, is then computed in float32 too.

    Args:
        head: See :func:`output_layer`.
        rows: Of each place, shape (N,).
        places: Shape (N,).
        precise: False: in the model's own precision.

    Yields:
        A list that gets the states at every token.
    """
    states: list[torch.Tensor] = []

    def at_places(_: Any, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        states.append(args[0])
        return args[0][rows.to(args[0].device), places.to(args[0].device)][:, None]

    def in_float32(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return precise_logits(head, args[0], output) if precise else output

    with head.register_forward_pre_hook(at_places), head.register_forward_hook(in_float32):
        yield states


def precise_logits(head: torch.nn.Module, states: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Compute an output layer's values in float32, from the weights that it has.

    Args:
        head: Quantized, adapted, sharded and offloaded ones are left alone.
        states: Its input.
        plain: Its output; returned as it is where it was not rounded, or the layer was left alone.
    """
    weight: Any = getattr(head, "weight", None)
    known = type(head) is torch.nn.Linear and type(weight) is torch.nn.Parameter and weight.is_floating_point()
    there = known and weight.device == states.device and weight.shape == (plain.shape[-1], states.shape[-1])
    if not there or plain.dtype not in (torch.bfloat16, torch.float16):
        return plain
    found: torch.Tensor = PreciseLinear.apply(states, weight, head.bias)
    return found


class PreciseLinear(torch.autograd.Function):
    """Compute a linear layer in float32; its weights are widened a part at a time, in the backward pass too.

    An NVIDIA GPU multiplies bfloat16 and sums in float32, so that weights in bfloat16 are read as they are.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return ``states @ weight.T + bias``."""
        ctx.save_for_backward(states, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.autocast(states.device.type, enabled=False):
            if _sums_wide(states, weight):
                values = torch.mm(states.flatten(0, -2), weight.T, out_dtype=torch.float32)
                values = values.view(*states.shape[:-1], len(weight))
            else:
                wide = states.float()
                values = torch.cat([functional.linear(wide, part.float()) for part in _parts(weight)], dim=-1)
            return values if bias is None else values + bias.float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of states, weight and bias, each in its own precision."""
        states, weight = ctx.saved_tensors
        of_states = of_weight = of_bias = None
        with torch.autocast(states.device.type, enabled=False):
            flat, wide = gradient.flatten(0, -2), states.float().flatten(0, -2)
            cut = flat.split([len(part) for part in _parts(weight)], dim=1)
            if ctx.needs_input_grad[0] and _sums_wide(states, weight):
                # Two numbers of 8 bits hold the first 16 of a gradient's 24.
                high = flat.to(torch.bfloat16)
                both = torch.cat([high, (flat - high).to(torch.bfloat16)])
                product = torch.mm(both, weight, out_dtype=torch.float32)
                of_states = product.view(2, *states.shape).sum(0).to(states.dtype)
            elif ctx.needs_input_grad[0]:
                of_states = torch.zeros_like(wide)
                for columns, part in zip(cut, _parts(weight), strict=True):
                    of_states.addmm_(columns, part.float())
                of_states = of_states.view_as(states).to(states.dtype)
            if ctx.needs_input_grad[1]:
                of_weight = torch.cat([(columns.T @ wide).to(weight.dtype) for columns in cut])
            if ctx.needs_input_grad[2]:
                of_bias = flat.sum(0).to(ctx.bias_dtype)
        return of_states, of_weight, of_bias


def _sums_wide(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether the device multiplies the two as they are, in bfloat16, with sums and result in float32."""
    if not weight.is_cuda or not states.dtype == weight.dtype == torch.bfloat16:
        return False
    known = torch.version.hip is None and hasattr(torch.ops.aten.mm, "dtype")
    return known and torch.cuda.get_device_capability(weight.device) >= (8, 0)


def _parts(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weight.split(max(1, WIDENED // weight.shape[1]))


def _inner(model: Any) -> Any:
    """Return the model within DataParallel and PEFT."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def keeps_logits(model: Any) -> bool:
    """Return whether the model's forward pass can be told to make logits at its last token alone."""
    return "logits_to_keep" in inspect.signature(type(_inner(model)).forward).parameters


def output_layer(model: Any) -> torch.nn.Module | None:
    """Return the layer that makes the logits, None where the model's code is not known to use it so."""
    base = _inner(model)
    known = own_class(base).__module__.startswith("transformers.models.")
    head: torch.nn.Module | None = base.get_output_embeddings() if known else None
    return head


def head_is_last(model: Any, batch: Batch) -> bool:
    """Return whether the output layer's values are the logits, by one question; some models cap or scale them."""
    head = output_layer(model)
    if head is None or is_split(model, head):
        return False
    if head not in _is_last:
        made: list[torch.Tensor] = []
        inputs = {name: batch[name][:1] for name in MODEL_INPUTS if name in batch}
        devices = [inputs["input_ids"].device] if inputs["input_ids"].is_cuda else []
        # Dropout must draw the same numbers as in a resumed fit, which tries at another step.
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices),
            head.register_forward_hook(lambda *parts: made.append(parts[2])),
        ):
            logits = model(**inputs, use_cache=False).logits
        _is_last[head] = len(made) == 1 and torch.equal(widen(made[0]), widen(logits))
    return _is_last[head]


#: What was found of each output layer.
_is_last: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def widen(values: torch.Tensor) -> torch.Tensor:
    """Return float32 at least: a softmax in bfloat16 would lose the small probabilities."""
    return values if values.dtype == torch.float64 else values.float()


def letter_log_likelihoods(logits: torch.Tensor, letter_ids: torch.Tensor) -> torch.Tensor:
    """Return the log-likelihood of each letter among all tokens, as the harness has it.

    Args:
        logits: Shape (B, V).
        letter_ids: Shape (B, K), -1 where a question lacks the letter.

    Returns:
        Shape (B, K), minus infinity where the letter is absent.
    """
    values = logits.log_softmax(-1).gather(1, letter_ids.clamp(min=0))
    return values.masked_fill(letter_ids < 0, -torch.inf)
