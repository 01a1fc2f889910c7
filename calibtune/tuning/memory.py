"""How many tokens one pass of a step takes, and ``--auto-batch``: the largest batch that fits the memory."""

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
    """Tokens that one forward and backward pass may have: twice an average batch's."""
    return 2 * batch_size * sum(len(row.input_ids) for row in rows) / max(len(rows), 1)


def largest_part(rows: Sequence[TokenExample], batch_size: int, most: float) -> list[TokenExample]:
    """The part of a step with the most tokens that there can be, of one question several times.

    The longest questions need not make it: two of them may be too many for a part, and of shorter ones several fill it.
    """

    def repeated(row: TokenExample) -> int:
        return int(max(1, min(batch_size, most / len(row.input_ids))))

    row = max(rows, key=lambda row: repeated(row) * len(row.input_ids))
    return [row] * repeated(row)


def fitting(model: Any, questions: Questions, recipe: Recipe, processes: int) -> Recipe:
    """The recipe with another split of the same step into batch size and accumulated parts.

    Args:
        model: The model to train, on its device.
        questions: The most tokens that a part of a step may have of them are tried.
        recipe: Its batch size times accumulation is kept.
        processes: Over which the step is spread; each tries for itself, so all must have the same memory.

    Returns:
        The recipe with the largest batch size whose forward and backward pass fits.

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
        # What a step finds taken: AdamW's two moments, and the gradients of the parts before.
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
