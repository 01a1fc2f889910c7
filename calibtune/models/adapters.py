"""Load trained adapters, and unpack the scales of 4-bit layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from calibtune.errors import UserError, is_out_of_memory, reason
from calibtune.files import read_json


def check_adapter(folder: Path) -> None:
    """Refuse an adapter without weights in safetensors, and one that names Python to run.

    Raises:
        UserError: A file is missing, or the adapter's configuration names a module to import.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds no adapter (adapter_config.json is missing); give an output folder of `calibtune fit`"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder} holds no weights (adapter_model.safetensors is missing); copy or fit the adapter again"
        )
    config = read_json(folder / "adapter_config.json")
    # PEFT imports the module of this name, which can lie in the working directory.
    if isinstance(config, dict) and config.get("megatron_config"):
        raise UserError(
            f"{folder / 'adapter_config.json'} has a megatron_config, with which PEFT imports the module "
            f"{config.get('megatron_core')!r:.80}; remove the two keys, or give another adapter"
        )


def load_adapter(model: Any, folder: Path) -> Any:
    """Return a base model with a trained, frozen adapter on it.

    Raises:
        UserError: The folder has no adapter, its weights are damaged, or it does not fit the model.
    """
    from peft import PeftModel

    check_adapter(folder)
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise UserError(f"the weights in {folder} are damaged ({error}); copy or fit the adapter again") from error
    except (RuntimeError, ValueError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise UserError(
            f"the adapter {folder} does not fit the base model ({reason(error)}); give the base that "
            f"it was trained on, {base}"
        ) from error


def unpack_scales(layer: Any) -> None:
    """Store a 4-bit layer's block scales in float32, which saves unpacking them in each pass.

    This undoes QLoRA's double quantization. The weights' values do not change, but each weight
    takes .37 bits more memory. Layers without double quantization are not changed.
    """
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is None or not state.nested:
        return
    from bitsandbytes.functional import dequantize_blockwise

    state.absmax = dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    state.nested, state.state2, state.offset = False, None, None
