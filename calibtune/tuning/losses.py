"""Compute what each method minimizes, one number a question, from one forward pass (docs/methods.md).

Every loss reads the model where the harness reads it: at the prompt's last token, over the whole vocabulary. L_SFT2
also reads the logits at the question's own tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from calibtune.models.heads import Batch, forward, head_is_last, letter_log_likelihoods, widen
from calibtune.recipe import Recipe

#: Tokens whose logits are held at a time; each has as many as the vocabulary.
CHUNK = 1024


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


def method_loss(model: Any, batch: Batch, recipe: Recipe) -> tuple[torch.Tensor, ...]:
    """A method's loss, a mean over the batch's questions.

    Args:
        model: Causal language model, wrapped or not.
        batch: See :func:`calibtune.data.tokens.collate`; with ``target`` (B, K), L_ECE is added.
        recipe: Of a method that trains.

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
    if "target" in batch:
        values = values + recipe.lambda_ * calibration_loss(letters, batch["target"], recipe.calibration_loss)
    return values.mean(), letters.detach()
