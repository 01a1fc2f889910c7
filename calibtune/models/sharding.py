"""What a fit needs where FSDP or DeepSpeed splits the model over the processes, as accelerate's configuration says."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers.integrations import is_deepspeed_zero3_enabled

from calibtune.errors import UserError, WorkFailed


def is_sharded() -> bool:
    """Whether accelerate was told to split the weights among processes, which takes them out of their layers."""
    return _launched_with("FSDP") or _launched_with("DEEPSPEED")


def _launched_with(name: str) -> bool:
    return bool(parse_flag_from_env(f"ACCELERATE_USE_{name}"))


def check_sharding() -> None:
    """Refuse to split a model by FSDP's version 1.

    Raises:
        UserError: accelerate is configured for it.
    """
    if _launched_with("FSDP") and os.environ.get("FSDP_VERSION", "1") == "1":
        # PEFT 0.21 saves adapters without their weights there, and no error says so.
        raise UserError(
            "FSDP's version 1 is not supported; set fsdp_version: 2 in accelerate's configuration (--fsdp_version 2)"
        )


def is_split(model: Any, layer: torch.nn.Module) -> bool:
    """Whether a layer's weights are gathered within the model's own forward pass, and can be used nowhere else."""
    # Only a model of a loaded FSDP can be one of its; loading it takes half a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    split = fsdp is not None and isinstance(model, fsdp.FSDPModule)
    return split or any(hasattr(weights, "ds_id") for weights in layer.parameters())


def whole(model: Any) -> AbstractContextManager[Any]:
    """A context in which a model that ZeRO 3 split as it was loaded can be run before it is trained."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def save_whole(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Gather a trained model's or adapter's weights and write them with its tokenizer; all processes call it.

    Args:
        trainer: After training.
        tokenizer: The model's.
        folder: The artifact's.

    Raises:
        WorkFailed: DeepSpeed's configuration keeps the weights split.
    """
    if trainer.is_fsdp_enabled:
        # For checkpoints the configuration may say otherwise, and then Trainer would write no weights here.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        if not any(folder.glob("*.safetensors")):
            raise WorkFailed(
                f"no weights were written to {folder}: set zero3_save_16bit_model: true in accelerate's configuration "
                "(stage3_gather_16bit_weights_on_model_save in DeepSpeed's), and run the same command with --resume"
            )
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
