"""Check that this machine and this model can run a fit, before weights are read."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from calibtune.artifacts.manifest import MANIFEST, STARTED
from calibtune.errors import UserError, reason
from calibtune.models.loading import check_packages, check_spec, device
from calibtune.models.quantized import held_as
from calibtune.models.sharding import check_sharding, is_sharded, launched_with
from calibtune.recipe import Recipe

logger = logging.getLogger(__name__)

#: Model types that take Liger's kernels and CUDA graphs without being asked: dense ones of RMSNorm and SwiGLU.
DENSE = ("llama", "mistral", "olmo2", "qwen2", "qwen3")


def check_machine(recipe: Recipe) -> None:
    """Check that this machine has the device and the packages of a recipe.

    Raises:
        UserError: The device, a GPU for an option, or a package is missing, several processes are to share a GPU, FSDP
            is version 1, or is to find the batch size.
    """
    check_spec(recipe.spec)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and recipe.device and not on_cpu(recipe.device) and torch.device(recipe.device).index is not None:
        raise UserError(
            f"--device {recipe.device} is one GPU for {processes} processes, and each takes its own; leave it out"
        )
    kind = device(recipe.device).type
    if recipe.cuda_graphs and (kind != "cuda" or is_sharded()):
        raise UserError("--cuda-graphs needs an NVIDIA or AMD GPU that holds the whole model; leave it out")
    if recipe.liger_kernel and kind == "cpu":
        raise UserError("--liger-kernel needs a GPU, and this fit would run on the CPU; leave it out")
    check_sharding()
    if recipe.auto_batch and launched_with("FSDP"):
        raise UserError(
            "--auto-batch tries sizes in each process by itself, and FSDP needs all processes in every pass; leave it "
            f"out and give --batch-size (now {recipe.batch_size}), which counts per process"
        )
    if recipe.trains:
        needed = {"peft", "accelerate", recipe.report_to} - {"none"}
        check_packages(needed | ({"liger_kernel"} if recipe.liger_kernel else set()))


def check_shared(recipe: Recipe, output: Path) -> None:
    """Check that all processes see the same of a fit that is to go on.

    Raises:
        UserError: The output folder is not shared by all nodes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    PartialState(cpu=on_cpu(recipe.device))
    seen = gather_object([tuple((output / name).is_file() for name in (STARTED, MANIFEST))])
    if len(set(seen)) > 1:
        raise UserError(
            f"--resume: not every node has what was begun in {output}; give an --output folder that all nodes share, "
            "or begin anew with --overwrite"
        )


def with_kernels(recipe: Recipe, config: Any) -> Recipe:
    """Return the recipe with Liger's kernels on or off; where it says neither, on if machine and model have them.

    Raises:
        UserError: They are asked for, and Liger has none for the model's type, so that transformers would ignore it.
    """
    if not recipe.trains or recipe.liger_kernel is False:
        return recipe
    if recipe.liger_kernel is None:
        return dataclasses.replace(recipe, liger_kernel=_liger_serves(recipe, config))
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(
            f"--liger-kernel: Liger has no kernels for a {config.model_type} model ({recipe.model}); leave it out"
        )
    return recipe


def _liger_serves(recipe: Recipe, config: Any) -> bool:
    """Return whether a GPU computes, Liger is installed and can be loaded, and the model is of ``DENSE``."""
    if device(recipe.device).type != "cuda" or config.model_type not in DENSE or recipe.trust_remote_code:
        return False
    if importlib.util.find_spec("liger_kernel") is None:
        return False
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    # It compiles and patches other libraries; with a version of them that it does not know, anything may be raised.
    except Exception as error:
        logger.warning("the fit runs without Liger's kernels, which cannot be loaded (%s)", reason(error))
        return False
    return config.model_type in MODEL_TYPE_TO_APPLY_LIGER_FN


def check_trainable(recipe: Recipe, config: Any) -> None:
    """Check that the base's weights are not quantized where all of them are to be trained.

    Raises:
        UserError: They are.
    """
    held = held_as(config)
    if recipe.tuning == "full" and held is not None:
        raise UserError(
            f"--tuning full: {recipe.model} holds its weights in {held}, which cannot be trained; use --tuning lora, "
            "or give the original model"
        )


def on_cpu(name: str | None) -> bool:
    """Return whether the fit runs on the CPU; accelerate needs it to connect processes."""
    return torch.device(name).type == "cpu" if name else not torch.accelerator.is_available()


def idle_gpus(recipe: Recipe) -> str:
    """Return a hint if one process trains on a machine with several GPUs, else an empty text."""
    count = torch.cuda.device_count()
    if count < 2 or on_cpu(recipe.device) or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ""
    share = max(recipe.batch_size // count, 1)
    return (
        f"one of {count} GPUs is used; to train on all of them with the same steps, run: torchrun --nproc_per_node "
        f"{count} -m calibtune fit ... --batch-size {share}"
    )
