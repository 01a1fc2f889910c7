"""Compute each method's loss per question from one forward pass (see docs/methods.md).

Every loss uses the log-likelihoods that the harness scores: at the prompt's last token, normalized
over the whole vocabulary. L_SFT2 also uses the logits at the question's tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from calibtune.models.heads import Batch, forward, head_is_last, letter_log_likelihoods, widen
from calibtune.recipe import Recipe

#: Number of tokens whose logits, one per word of the vocabulary, are in memory at a time.
CHUNK = 1024


def cft_loss(letters: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Compute L_SFT1, ``-log pi(y | x)`` of the right letter, shape (B,) (arXiv 2505.01997).

    Args:
        letters: Log-likelihoods, shape (B, K); see :func:`letter_log_likelihoods`.
        gold: Index of the right letter, shape (B,).
    """
    return -letters.gather(1, gold[:, None])[:, 0]


def label_smoothing_loss(letters: torch.Tensor, gold: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Compute the cross-entropy of letters against a smoothed target, shape (B,).

    Args:
        letters: Log-likelihoods, shape (B, K).
        gold: Index of the right letter, shape (B,).
        epsilon: The target is ``1 - epsilon`` on the right letter and ``epsilon / (K - 1)`` on each
            other one.
    """
    present = letters.isfinite()
    right = torch.arange(letters.shape[1], device=letters.device) == gold[:, None]
    wrong = epsilon / (present.sum(1, keepdim=True) - 1)
    target = torch.where(right, 1 - epsilon, wrong)
    return -(target * letters).masked_fill(~present, 0.0).sum(1)


def calibration_loss(letters: torch.Tensor, target: torch.Tensor, kind: str = "mse") -> torch.Tensor:
    """Compute L_ECE of each question, shape (B,): the distance of p and q (arXiv 2505.01997).

    Args:
        letters: Log-likelihoods, shape (B, K); p is their softmax (Eq 1).
        target: q, shape (B, K), 0 where the letter is absent; it gets no gradient.
        kind: "mse" for ``sum_j (p_j - q_j)^2``, as in the paper's experiments, or "cross-entropy"
            for ``-sum_j q_j log p_j``, as in its proof of convergence (appendix A.5).
    """
    target = target.detach()
    if kind == "mse":
        return ((letters.softmax(1) - target) ** 2).sum(1)
    log_probs = letters.log_softmax(1)
    return -(target * log_probs.masked_fill(log_probs.isinf(), 0.0)).sum(1)


def question_loss(states: torch.Tensor, head: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the summed negative log-likelihood of the question's tokens after the first.

    Logits and their float32 copies are computed for ``CHUNK`` tokens at a time, and again in the
    backward pass, to save memory.

    Args:
        states: Hidden states at every token, shape (B, T, H).
        head: Module that computes logits from hidden states.
        batch: See :func:`calibtune.data.tokens.collate`.

    Returns:
        The sums in nats and the numbers of tokens, both of shape (B,).
    """
    places = torch.arange(states.shape[1], device=states.device)
    last = batch["answer"][:, None]
    first = batch["attention_mask"].argmax(1, keepdim=True) if "attention_mask" in batch else torch.zeros_like(last)
    predicts = (places >= first) & (places < last)
    # Keep all T positions and mask labels instead: flattening a slice would copy the states.
    labels = batch["input_ids"].roll(-1, 1).masked_fill(~predicts, -100)

    def of_chunk(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(widen(head(states)), labels, reduction="none")

    chunks = zip(states.flatten(0, 1).split(CHUNK), labels.flatten().split(CHUNK), strict=True)
    values = torch.cat(
        [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    )
    return values.view_as(labels).sum(1), predicts.sum(1)


def sft2_loss(letter: torch.Tensor, question: torch.Tensor, count: torch.Tensor, weight: float | str) -> torch.Tensor:
    """Compute L_SFT2 of each question, shape (B,), with a weighted letter (docs/methods.md, RCFT).

    Args:
        letter: L_SFT1, shape (B,).
        question: Summed negative log-likelihood of the question's tokens, shape (B,).
        count: Number of question tokens, shape (B,).
        weight: "sum" for the sum over question tokens and letter, as in the paper; "token-mean" for
            their mean, as in most libraries; a number w for the mean over question tokens plus w
            times L_SFT1.
    """
    if weight == "sum":
        return question + letter
    if weight == "token-mean":
        return (question + letter) / (count + 1)
    return question / count.clamp(min=1) + float(weight) * letter


def method_loss(model: Any, batch: Batch, recipe: Recipe) -> tuple[torch.Tensor, ...]:
    """Compute a method's loss, averaged over the batch's questions.

    Args:
        model: Causal language model, wrapped or not.
        batch: See :func:`calibtune.data.tokens.collate`; if it has ``target`` (B, K), L_ECE is added.
        recipe: Recipe of a method that trains.

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
