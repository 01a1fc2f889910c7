"""Support models that FSDP or DeepSpeed shards over the processes, as configured in accelerate."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers.integrations import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from calibtune.errors import UserError, WorkFailed


def is_sharded() -> bool:
    """Return whether accelerate is configured to shard the weights over the processes."""
    return launched_with("FSDP") or launched_with("DEEPSPEED")


def launched_with(name: str) -> bool:
    """Return whether accelerate is configured for FSDP or DEEPSPEED."""
    return bool(parse_flag_from_env(f"ACCELERATE_USE_{name}"))


def check_sharding() -> None:
    """Check that accelerate is configured for what fits support.

    Raises:
        UserError: It is configured for FSDP version 1, or for tensor parallelism.
    """
    if launched_with("FSDP") and os.environ.get("FSDP_VERSION", "1") == "1":
        # With FSDP version 1, PEFT 0.21 saves adapters without weights and without an error.
        raise UserError(
            "FSDP version 1 is not supported; set fsdp_version: 2 in accelerate's configuration (--fsdp_version 2)"
        )
    if parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG") and not is_sharded():
        # Processes of a tensor-parallel group get the same questions, and a step counts them as different ones.
        raise UserError(
            "accelerate's parallelism_config is not supported without FSDP; leave out --use_parallelism_config"
        )


def split_by_fsdp(model: Any) -> bool:
    """Return whether FSDP 2 has split a model."""
    # That can be only if FSDP is loaded; loading it takes half a second.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def own_class(model: Any) -> Any:
    """Return a model's class without the one that FSDP puts before it."""
    return type(model).__mro__[2] if split_by_fsdp(model) else type(model)


def is_split(model: Any, layer: torch.nn.Module) -> bool:
    """Return whether a layer's weights are sharded, so only the model's forward pass has them."""
    return split_by_fsdp(model) or any(hasattr(weights, "ds_id") for weights in layer.parameters())


def whole(model: Any) -> AbstractContextManager[Any]:
    """Return a context that gathers weights sharded by ZeRO 3, to run a model before training."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def load_alone() -> None:
    """Let this process load whole models from now on; under ZeRO 3, transformers would wait for all of them."""
    unset_hf_deepspeed_config()


def save_whole(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Gather the weights of a trained model or adapter, and write them with the tokenizer.

    All processes must call it.

    Args:
        trainer: Trainer after training.
        tokenizer: The model's tokenizer.
        folder: The artifact's folder.

    Raises:
        WorkFailed: DeepSpeed's configuration does not gather the weights.
    """
    if trainer.is_fsdp_enabled:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        # Trainer would gather the frozen base, too, or with the state dict type SHARDED write no weights.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights = get_model_state_dict(trainer.model, options=options)
        if trainer.is_world_process_zero():
            trainer.model.save_pretrained(folder, state_dict=weights)
    else:
        trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        # A pickle, which runs code when it is read; the manifest holds the recipe.
        (folder / "training_args.bin").unlink(missing_ok=True)
        if not any(folder.glob("*.safetensors")):
            raise WorkFailed(
                f"no weights were written to {folder}: set zero3_save_16bit_model: true in accelerate's configuration "
                "(stage3_gather_16bit_weights_on_model_save in DeepSpeed's), and run the same command with --resume"
            )
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
