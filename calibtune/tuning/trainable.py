"""Make a base model trainable, with an adapter or all of its weights."""

from __future__ import annotations

from typing import Any

from calibtune.errors import UserError
from calibtune.models.adapters import unpack_scales
from calibtune.models.loading import device
from calibtune.models.sharding import is_sharded
from calibtune.recipe import Recipe


def add_adapter(model: Any, recipe: Recipe) -> Any:
    """Return a trainable model: with an adapter, or with all weights if the recipe says "full".

    Raises:
        UserError: PEFT cannot add an adapter to the target modules.
    """
    model = model.requires_grad_(True) if recipe.tuning == "full" else _with_adapter(model, recipe)
    if device(recipe.device).type == "cuda" and not is_sharded():
        for layer in model.modules():
            unpack_scales(layer)
    return model


def _with_adapter(model: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear" if recipe.target_modules == ("all-linear",) else list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"no adapter can be added to {', '.join(recipe.target_modules)} of {recipe.model}: {error} Give other "
            "--target-modules, or --tuning full"
        ) from error
