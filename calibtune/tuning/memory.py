"""Limit the tokens of a forward pass, and find the largest batch that fits (``--auto-batch``)."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from calibtune.data.tokens import TokenExample, collate
from calibtune.data.training_set import Questions
from calibtune.errors import WorkFailed, is_out_of_memory
from calibtune.models.loading import resolved_precision
from calibtune.models.sharding import is_sharded
from calibtune.recipe import Recipe
from calibtune.tuning.losses import method_loss

logger = logging.getLogger(__name__)


def most_tokens(rows: Sequence[TokenExample], batch_size: int) -> float:
    """Return the largest number of tokens of a forward pass: twice that of an average batch."""
    return 2 * batch_size * sum(len(row.input_ids) for row in rows) / max(len(rows), 1)


def largest_part(rows: Sequence[TokenExample], batch_size: int, most: float) -> list[TokenExample]:
    """Return the part of a step with the most tokens, made of one question repeated.

    This is not always the longest question: if two of those exceed ``most``, several shorter ones
    can make a larger part.

    Args:
        rows: All training questions.
        batch_size: Largest number of questions of a part.
        most: Largest number of tokens of a part.
    """

    def repeated(row: TokenExample) -> int:
        return int(max(1, min(batch_size, most / len(row.input_ids))))

    row = max(rows, key=lambda row: repeated(row) * len(row.input_ids))
    return [row] * repeated(row)


def fitting(model: Any, questions: Questions, recipe: Recipe, processes: int) -> Recipe:
    """Return the recipe with the largest batch size that fits the memory.

    Batch size times gradient accumulation stays the same. Each size is tried with the largest part
    that it allows.

    Args:
        model: The model to train, on its device.
        questions: The questions to train on.
        recipe: The recipe of the fit.
        processes: Number of processes; each tries for itself, so all need the same memory.

    Returns:
        The recipe with new ``batch_size`` and ``gradient_accumulation``.

    Raises:
        WorkFailed: Not even one question fits.
    """
    step = recipe.batch_size * recipe.gradient_accumulation
    rows = questions.train.rows
    for size in (size for size in range(step, 0, -1) if step % size == 0):
        part = largest_part(rows, size, math.inf if is_sharded() else most_tokens(rows, size))
        if _fits(model, collate(part, questions.pad_id), recipe):
            logger.info("--auto-batch: %d questions in a forward pass, %d accumulated", size, step // size)
            return dataclasses.replace(recipe, batch_size=size, gradient_accumulation=step // size)
    raise WorkFailed(
        f"not even one question of {max(len(row.input_ids) for row in rows)} tokens fits the memory; use "
        "--gradient-checkpointing, --quantization nf4 or a smaller model"
    )


def _fits(model: Any, batch: dict[str, torch.Tensor], recipe: Recipe) -> bool:
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    if recipe.method == "rcft":
        batch["target"] = torch.zeros(batch["letter_ids"].shape, device=device)
    model.train()
    held = []
    try:
        # Allocate the other tensors of a real step: AdamW's two moments and accumulated gradients.
        for weight in model.parameters():
            held += [torch.empty_like(weight) for _ in range(3)] if weight.requires_grad else []
        with torch.autocast(device.type, torch.bfloat16, enabled=resolved_precision(recipe.spec) == "bf16"):
            loss, _ = method_loss(model, batch, recipe)
        loss.backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        held.clear()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
