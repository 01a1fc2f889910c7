"""What each method minimizes (paper section 3), one number a question, from one forward pass.

Every loss reads the model where the harness reads it: at the prompt's last token, over the whole vocabulary. L_SFT2
also reads the logits at the question's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from calibtune.models.sharding import is_split
from calibtune.recipe import Recipe

Batch = dict[str, torch.Tensor]
#: Gives q (B, K) for a batch and its letters' log-likelihoods: 0 where a letter is absent, all NaN where L_ECE is off.
Target = Callable[[Batch, torch.Tensor], torch.Tensor]
#: What the model itself is given; the rest of a batch is for the loss.
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
#: Tokens whose logits are held at a time; each has as many as the vocabulary.
CHUNK = 1024


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


def cft_loss(letters: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """L_SFT1: minus the right letter's log-likelihood, shape (B,) (paper section 3).

    Args:
        letters: Log-likelihoods, shape (B, K); see :func:`letter_log_likelihoods`.
        gold: Index of the right letter, shape (B,).
    """
    return -letters.gather(1, gold[:, None])[:, 0]


def label_smoothing_loss(letters: torch.Tensor, gold: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Cross-entropy against ``1 - epsilon`` on the right letter and ``epsilon / (K - 1)`` on the others, shape (B,)."""
    present = letters.isfinite()
    right = torch.arange(letters.shape[1], device=letters.device) == gold[:, None]
    wrong = epsilon / (present.sum(1, keepdim=True) - 1)
    target = torch.where(right, 1 - epsilon, wrong)
    return -(target * letters.masked_fill(~present, 0.0)).masked_fill(~present, 0.0).sum(1)


def calibration_loss(letters: torch.Tensor, target: torch.Tensor, kind: str = "mse") -> torch.Tensor:
    """L_ECE of each question, shape (B,): ``sum_j (p_j - q_j)^2``, or cross-entropy ``-sum_j q_j log p_j``.

    Args:
        letters: Log-likelihoods, shape (B, K); p is their softmax (paper Eq 1).
        target: q, shape (B, K), 0 where the letter is absent; no gradient goes through it.
        kind: "mse" (the paper) or "cross-entropy" (the distance for which convergence is claimed, appendix A.5).
    """
    target = target.detach()
    if kind == "mse":
        return ((letters.softmax(1) - target) ** 2).sum(1)
    log_probs = letters.log_softmax(1)
    return -(target * log_probs.masked_fill(log_probs.isinf(), 0.0)).sum(1)


def question_loss(states: torch.Tensor, head: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over the question's tokens after the first of minus their log-likelihood, and their number; both (B,).

    Never makes more than ``CHUNK`` rows of logits, or of their float32 copies, at a time: each chunk's are computed
    again in the backward pass.

    Args:
        states: At every token, shape (B, T, H).
        head: Makes logits of them.
        batch: See :func:`calibtune.data.tokens.collate`.
    """
    places = torch.arange(states.shape[1], device=states.device)
    last = batch["answer"][:, None]
    first = batch["attention_mask"].argmax(1, keepdim=True) if "attention_mask" in batch else torch.zeros_like(last)
    predicts = (places >= first) & (places < last)
    # Cut nowhere, since flattening a part of the states would copy them.
    labels = batch["input_ids"].roll(-1, 1).masked_fill(~predicts, -100)

    def of_chunk(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(widen(head(states)), labels, reduction="none")

    chunks = zip(states.flatten(0, 1).split(CHUNK), labels.flatten().split(CHUNK), strict=True)
    values = torch.cat(
        [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    )
    return values.view_as(labels).sum(1), predicts.sum(1)


def sft2_loss(letter: torch.Tensor, question: torch.Tensor, count: torch.Tensor, weight: float | str) -> torch.Tensor:
    """L_SFT2 of each question, shape (B,), under one of its normalizations (``findings.md``, point 2).

    Args:
        letter: L_SFT1, shape (B,).
        question: Sum over question tokens, shape (B,).
        count: Number of question tokens, shape (B,).
        weight: "sum": all tokens summed, the paper as written. "token-mean": the mean over question tokens and letter,
            as most libraries take it. A number: so many times the letter beside the mean over question tokens.
    """
    if weight == "sum":
        return question + letter
    if weight == "token-mean":
        return (question + letter) / (count + 1)
    return question / count.clamp(min=1) + float(weight) * letter


def method_loss(model: Any, batch: Batch, recipe: Recipe, target: Target | None = None) -> tuple[torch.Tensor, ...]:
    """A method's loss, a mean over the batch's questions.

    Args:
        model: Causal language model, wrapped or not.
        batch: See :func:`calibtune.data.tokens.collate`.
        recipe: Of a method that trains.
        target: For RCFT, gives q of the batch's questions.

    Returns:
        The scalar loss, and the letters' log-likelihoods (B, K), detached.
    """
    supervised = recipe.method == "rcft" and recipe.sft
    logits, states, head = forward(model, batch, everywhere=supervised and not head_is_last(model, batch))
    letters = letter_log_likelihoods(logits, batch["letter_ids"])
    if supervised:
        question, count = question_loss(states, head, batch)
        values = sft2_loss(cft_loss(letters, batch["gold"]), question, count, recipe.letter_weight)
    else:
        if recipe.method == "label-smoothing":
            values = label_smoothing_loss(letters, batch["gold"], recipe.smoothing)
        elif recipe.method == "cft":
            values = cft_loss(letters, batch["gold"])
        else:
            values = torch.zeros(len(letters), device=letters.device)
    if target is not None:
        q = target(batch, letters.detach())
        weight = recipe.lambda_ * ~q[:, 0].isnan()
        values = values + weight * calibration_loss(letters, q.nan_to_num(), recipe.calibration_loss)
    return values.mean(), letters.detach()
