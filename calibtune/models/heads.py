"""Read logits where they are needed: at the answer's token alone, with the model's own output layer."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from calibtune.models.sharding import is_split

Batch = dict[str, torch.Tensor]
#: What the model itself is given; the rest of a batch is for the loss.
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


def answer_logits(model: Any, batch: Batch, past: Any = None) -> torch.Tensor:
    """Logits at each question's last prompt token, and nowhere else; shape (B, V), float32 at least.

    ``past`` holds the keys and values of what comes before the batch's tokens, if anything does.
    """
    return forward(model, batch, past)[0]


def forward(
    model: Any, batch: Batch, past: Any = None, everywhere: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """One forward pass whose output layer reads only the answer's place, where the model allows it.

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
        return widen(logits[rows, batch["answer"]]), logits, torch.nn.Identity()
    states: list[torch.Tensor] = []

    def at_the_answer(_: Any, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        states.append(args[0])
        return args[0][rows, batch["answer"]][:, None]

    with head.register_forward_pre_hook(at_the_answer):
        logits = model(**inputs).logits
    return widen(logits[:, 0]), states[0], head


def output_layer(model: Any) -> torch.nn.Module | None:
    """The layer that makes the logits, None where the model's code is not known to use it so."""
    inner = getattr(model, "module", model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    known = type(base).__module__.startswith("transformers.models.")
    head: torch.nn.Module | None = base.get_output_embeddings() if known else None
    return head


def head_is_last(model: Any, batch: Batch) -> bool:
    """Whether the output layer's values are the logits; some models cap or scale them. Tried once with one question."""
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
    """Float32 at least: a softmax in bfloat16 would lose the small probabilities."""
    return values if values.dtype == torch.float64 else values.float()


def letter_log_likelihoods(logits: torch.Tensor, letter_ids: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of each letter among all tokens, as the harness has it.

    Args:
        logits: Shape (B, V).
        letter_ids: Shape (B, K), -1 where a question lacks the letter.

    Returns:
        Shape (B, K), minus infinity where the letter is absent.
    """
    values = logits.log_softmax(-1).gather(1, letter_ids.clamp(min=0))
    return values.masked_fill(letter_ids < 0, -torch.inf)
