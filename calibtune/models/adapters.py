"""Put a new adapter on a base model, or load a finished one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from calibtune.errors import UserError, is_out_of_memory
from calibtune.files import read_json
from calibtune.models.loading import device
from calibtune.models.sharding import is_sharded
from calibtune.recipe import Recipe


def add_adapter(model: Any, recipe: Recipe) -> Any:
    """Make a model trainable as the recipe says: an adapter on all linear layers, or all weights.

    Raises:
        UserError: PEFT can put no adapter on its layers.
    """
    model = model.requires_grad_(True) if recipe.tuning == "full" else _with_adapter(model, recipe)
    if device(recipe).type == "cuda" and not is_sharded():
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
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"no adapter can be put on all linear layers of {recipe.model}: {error} Use --tuning full"
        ) from error


def load_adapter(model: Any, folder: Path) -> Any:
    """A base model with a finished adapter on it, not trainable.

    Raises:
        UserError: The folder holds no adapter, or one for a model of another shape.
    """
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no adapter (no adapter_config.json); give a folder that calibtune fit wrote")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder} holds no weights (no adapter_model.safetensors); copy or fit the adapter again")
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise UserError(f"the weights in {folder} are damaged ({error}); copy or fit the adapter again") from error
    except (RuntimeError, ValueError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise UserError(
            f"the adapter {folder} does not fit this model; it was made for {base} ({str(error).splitlines()[0]:.120})"
        ) from error


def unpack_scales(layer: Any) -> None:
    """Keep a 4-bit layer's block scales in float32; QLoRA's double quantization would unpack them in each pass.

    The weights' values stay as they are; each takes .37 bits more memory. Other layers are left alone.
    """
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is None or not state.nested:
        return
    from bitsandbytes.functional import dequantize_blockwise

    state.absmax = dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    state.nested, state.state2, state.offset = False, None, None
