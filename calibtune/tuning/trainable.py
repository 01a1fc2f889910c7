"""Make a base model trainable, with an adapter or all of its weights."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import torch

from calibtune.errors import UserError
from calibtune.models.adapters import unpack_scales
from calibtune.models.loading import device
from calibtune.models.quantized import passed_by
from calibtune.models.sharding import is_sharded, whole
from calibtune.recipe import Recipe

logger = logging.getLogger(__name__)


def add_adapter(model: Any, recipe: Recipe) -> Any:
    """Return a trainable model: with an adapter, or with all weights if the recipe says "full".

    Raises:
        UserError: PEFT cannot add an adapter to the target modules.
    """
    model = model.requires_grad_(True) if recipe.tuning == "full" else _with_adapter(model, recipe)
    if device(recipe.device).type == "cuda" and not is_sharded():
        for layer in model.modules():
            unpack_scales(layer)
    logger.info("%s", weight_shares(model))
    return model


def expert_parameters(model: Any) -> list[str]:
    """Return PEFT's names of a mixture's fused expert weights; empty where there are none."""
    names = (name.split(".") for name, weight in model.named_parameters() if weight.dim() == 3)
    return sorted({".".join(parts[-2:]) for parts in names if "experts" in parts})


def unfit_layers(model: Any) -> list[str]:
    """Return the names of linear layers that an adapter cannot be on; the output layer never has one.

    The model's code passes some by, see :func:`calibtune.models.quantized.passed_by`; others are more than linear, such
    as a router that gives the chosen experts too.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    # One layer of each class is enough.
    known = {kind: _is_linear(layer) for kind, layer in {type(layer): layer for layer in linear.values()}.items()}
    return sorted(passed_by(model) | {name for name, layer in linear.items() if not known[type(layer)]})


def _is_linear(layer: torch.nn.Linear) -> bool:
    """Return whether a layer gives what torch's own linear layer gives, as to its shape."""
    if type(layer) is torch.nn.Linear:
        return True
    with torch.no_grad(), whole(layer):
        weight = layer.weight
        states = torch.ones(1, layer.in_features, device=weight.device)
        states = states.to(weight.dtype) if weight.is_floating_point() else states
        try:
            output = layer(states)
        except RuntimeError:
            return False
    return isinstance(output, torch.Tensor) and output.shape == (1, layer.out_features)


def weight_shares(model: Any) -> str:
    """Say what share of a model's weights is trained and what share is held in 4 bits.

    Fused experts and layers of a kind that bitsandbytes does not know stay in full precision without a word from it.
    """
    trained = four_bit = base = 0
    for weight in model.parameters():
        # bitsandbytes packs two weights into a byte.
        count = 2 * weight.nbytes if type(weight).__name__ == "Params4bit" else weight.numel()
        trained += count if weight.requires_grad else 0
        four_bit += count if type(weight).__name__ == "Params4bit" else 0
        base += 0 if weight.requires_grad else count
    if not base:
        return f"all {trained:,} weights are trained"
    held = f"; {100 * four_bit / base:.1f} % of the base's are held in 4 bits" if four_bit else ""
    return f"{trained:,} adapter weights are trained, {100 * trained / base:.2f} % of the base's {base:,}{held}"


def _with_adapter(model: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
    everywhere = recipe.target_modules == ("all-linear",)
    experts = expert_parameters(model) if everywhere else []
    if experts and recipe.lora_dropout > 0:
        raise UserError(
            f"--lora-dropout is {recipe.lora_dropout:g}, and PEFT has no dropout for the fused experts of "
            f"{recipe.model}; give --lora-dropout 0"
        )
    unfit = unfit_layers(model) if everywhere else []
    if unfit:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in unfit}))
        logger.info("no adapter on %s: an adapter there would have no effect, or they are no linear layers", kinds)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear" if everywhere else list(recipe.target_modules),
        target_parameters=experts or None,
        exclude_modules=unfit or None,
        task_type="CAUSAL_LM",
    )
    # PEFT draws weights where torch does by default, and moving them to a GPU takes longer than drawing them there.
    # A model that FSDP splits is still on the CPU here, where a seed draws other weights than on one GPU.
    where = device(recipe.device)
    try:
        with where if where.type == "cuda" else nullcontext():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"no adapter can be added to {', '.join(recipe.target_modules)} of {recipe.model}: {error} Give other "
            "--target-modules, or --tuning full"
        ) from error
    # The artifact has a card of its own, and a checkpoint needs none.
    adapted.create_or_update_model_card = lambda folder: None
    return adapted
