"""Load finished adapters; unpack the scales of 4-bit layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from calibtune.errors import UserError, is_out_of_memory
from calibtune.files import read_json


def load_adapter(model: Any, folder: Path) -> Any:
    """Return a base model with a finished adapter on it, not trainable.

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
