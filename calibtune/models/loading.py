"""Loading base models and tokenizers, attaching adapters; every refusal comes before any weights are read."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import patch_environment
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from calibtune.errors import UserError, is_out_of_memory
from calibtune.models.sharding import check_sharding
from calibtune.recipe import Recipe

#: Where configurations keep the context's length, as the harness looks for it.
LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")


def load_tokenizer(recipe: Recipe) -> Any:
    """The model's tokenizer, with the recipe's chat template if it names one.

    Raises:
        UserError: There is no such model, or no chat template where one was asked for.
    """
    tokenizer = _from(AutoTokenizer, recipe.model, recipe.trust_remote_code)
    if recipe.chat_template is not None:
        path = Path(recipe.chat_template)
        if not path.is_file():
            raise UserError(f"--chat-template {path} is no file; give one that holds a Jinja template")
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--chat-template {path} is not UTF-8 ({error}); write it again as such") from None
    if recipe.apply_chat_template and not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {recipe.model} has no chat template; give one with --chat-template FILE, or leave "
            "--apply-chat-template out"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_config(recipe: Recipe) -> Any:
    """The model's configuration.

    Raises:
        UserError: There is no such model, or it is not a causal language model.
    """
    config = _from(AutoConfig, recipe.model, recipe.trust_remote_code)
    names = config.architectures or []
    heads = ("MaskedLM", "Classification", "Answering", "Model")
    other = [name for name in names if name.endswith(heads) and not name.endswith("LMHeadModel")]
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder or other or (type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote):
        raise UserError(
            f"{recipe.model} is a {', '.join(names) or config.model_type}, not a causal language model; give a decoder "
            "that generates text, such as a ...ForCausalLM"
        )
    return config


def context_length(config: Any, tokenizer: Any) -> int:
    """The model's context in tokens."""
    text = config.get_text_config()
    lengths = [getattr(text, name) for name in LENGTHS if getattr(text, name, None)]
    return int(lengths[0] if lengths else min(tokenizer.model_max_length, 2048))


def load_base(recipe: Recipe) -> Any:
    """The base model, quantized where the recipe says, on the device that the fit will use.

    A model that is trained in full is held in float32, since bfloat16 weights lose small updates.
    """
    full = recipe.tuning == "full" and recipe.method != "temperature"
    dtype = torch.float32 if recipe.precision == "fp32" or full else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if recipe.quantization == "nf4":
        options["quantization_config"] = nf4(dtype)
        options["device_map"] = {"": device(recipe)}
    # The base model is scored before FSDP splits it, by all processes; where only the first reads the weights and sends
    # them then, transformers before 5.23 leaves the others without any until then.
    with patch_environment(fsdp_cpu_ram_efficient_loading="false"):
        model, info = _from(AutoModelForCausalLM, recipe.model, recipe.trust_remote_code, **options)
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random values in their place.
        raise UserError(
            f"--model {recipe.model}: {len(missing)} weights that its config.json asks for are not there, such as "
            f"{missing[0]}; copy the model again"
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes 0.50 repacks 4-bit weights at the first scoring on such CPUs, for a kernel without gradients,
            # and goes on using it in training: adapters would get wrong gradients.
            module.support_avx512bf16_for_cpu = False
    return model if recipe.quantization == "nf4" else model.to(device(recipe))


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with quantized constants (QLoRA, Dettmers et al. 2023), computing in ``dtype``."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def device(recipe: Recipe) -> torch.device:
    """Where the model lies: what was asked for, or this process's accelerator, or the CPU."""
    return torch.device(recipe.device) if recipe.device else PartialState().device


def idle_gpus(recipe: Recipe) -> str:
    """What to say where this process trains alone, on one of several GPUs."""
    count = torch.cuda.device_count()
    if count < 2 or recipe.cuda_graphs or on_cpu(recipe) or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ""
    share = max(recipe.batch_size // count, 1)
    return (
        f"\none of {count} GPUs is used; for all, in the same steps: torchrun --nproc_per_node {count} -m calibtune "
        f"fit ... --batch-size {share}"
    )


def on_cpu(recipe: Recipe) -> bool:
    """Whether the fit runs on the CPU; accelerate must be told so, else processes there do not find each other."""
    return recipe.device == "cpu" or (recipe.device is None and not torch.accelerator.is_available())


def found_device() -> str:
    """This process's accelerator, or "cpu"; the hf backend's own default is CUDA even where there is none."""
    return PartialState().device.type


def check_kernels(recipe: Recipe, config: Any) -> None:
    """Refuse ``--liger-kernel`` for a model that Liger has no kernels for; transformers would leave it as it is.

    Raises:
        UserError: With the model's type.
    """
    if not recipe.liger_kernel:
        return
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(
            f"--liger-kernel: Liger has no kernels for a {config.model_type} ({recipe.model}); leave it out"
        )


def check_installed(recipe: Recipe) -> None:
    """Refuse a recipe that asks for what this machine does not have.

    Raises:
        UserError: The device is none of this machine's, or a package is missing.
    """
    if recipe.device is not None:
        try:
            torch.empty(0, device=recipe.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--device {recipe.device} cannot be used here: {reason:.120}; leave it out") from error
    if recipe.cuda_graphs and (device(recipe).type != "cuda" or PartialState().num_processes > 1):
        raise UserError("--cuda-graphs needs one process on an NVIDIA or AMD GPU; leave it out")
    if recipe.liger_kernel and device(recipe).type == "cpu":
        raise UserError("--liger-kernel needs a GPU, and this fit would run on the CPU; leave it out")
    check_sharding()
    needed = {"peft", "accelerate"} if recipe.method != "temperature" else set()
    needed |= {"bitsandbytes"} if recipe.quantization == "nf4" else set()
    needed |= {"liger_kernel"} if recipe.liger_kernel else set()
    needed |= {recipe.report_to} - {"none"}
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        raise UserError(f"this fit needs {', '.join(missing)}, not installed here; pip install {' '.join(missing)}")


def _from(loader: Any, name: str, trust_remote_code: bool, **options: Any) -> Any:
    # A name of this form would be taken for a hub id, and the error would be about its letters.
    if (Path(name).is_absolute() or name.startswith((".", "~"))) and not Path(name).exists():
        raise UserError(f"--model {name} does not exist; give a folder that transformers loads, or a hub id")
    try:
        return loader.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"--model {name} cannot be loaded: {reason:.300}; give a folder with its whole config.json, tokenizer and "
            "*.safetensors, or a hub id"
        ) from error
