"""Write whole models with their tokenizers, completely or not at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from calibtune.artifacts.manifest import Artifact
from calibtune.errors import UserError, WorkFailed
from calibtune.files import keep_inputs, refuse_existing, write_json
from calibtune.models.loading import load_base, load_tokenizer
from calibtune.spec import ModelSpec

#: Log-probabilities closer than this are those of one model.
SAME = 1e-3


def check_model_output(output: Path, overwrite: bool, folder: Path, artifact: Artifact) -> None:
    """Check the output folder before the model is loaded; old files are removed only before writing.

    Raises:
        UserError: The folder has files and ``overwrite`` is off, or it contains a folder that the
            command reads.
    """
    if overwrite:
        keep_inputs(output, Path.cwd(), folder, artifact.model, artifact.adapter)
    else:
        refuse_existing(output, overwrite)


def own_or_base_tokenizer(folder: Path, spec: ModelSpec) -> Any:
    """Return the tokenizer in a folder if there is one, else the base model's.

    Raises:
        UserError: It cannot be loaded, or brings code that the user has not trusted.
    """
    # The file of a chat template that a manifest names is no file that its reader chose.
    spec = dataclasses.replace(spec, apply_chat_template=False, chat_template=None)
    if (folder / "tokenizer_config.json").is_file():
        spec = dataclasses.replace(spec, name=str(folder), revision=None)
    return load_tokenizer(spec)


def save_model(
    model: Any, tokenizer: Any, output: Path, origin: Mapping[str, Any], trust_remote_code: bool = False
) -> None:
    """Write a model and its tokenizer, load the model again as a check, and at last write ``calibtune-origin.json``.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        output: Folder to write.
        origin: Content of ``calibtune-origin.json``: base model, method and parameters.
        trust_remote_code: Run code that came with the base model.

    Raises:
        WorkFailed: The folder cannot be written, the disk is full, or the written model gives other logits than the
            one in memory; the folder is then removed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        check_written(model, output, trust_remote_code)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(output, ignore_errors=True)
        raise WorkFailed(f"{output} cannot be written ({error}); free disk space or give another --output") from error
    except UserError:
        shutil.rmtree(output, ignore_errors=True)
        raise
    write_json(output / "calibtune-origin.json", origin)


def check_written(model: Any, folder: Path, trust_remote_code: bool = False) -> None:
    """Load a model that was just written and compare its log-probabilities with those of the one in memory.

    transformers writes some architectures under names that it does not read again, and says nothing.

    Raises:
        WorkFailed: They differ, or weights are missing.
    """
    parameter = next(model.parameters())
    spec = ModelSpec(str(folder), device=str(parameter.device), trust_remote_code=trust_remote_code)
    try:
        written = load_base(spec, parameter.dtype)
    except UserError as error:
        raise WorkFailed(f"the model written to {folder} cannot be loaded again: {error}") from error
    ids = torch.arange(16, device=parameter.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        expected, found = (each.eval()(ids).logits.float().log_softmax(-1) for each in (model, written))
    apart = float((found - expected).abs().max())
    if not apart <= SAME:
        raise WorkFailed(
            f"the {type(model).__name__} written to {folder} gives other answers than the one in memory (log-"
            f"probabilities are {apart:.3g} apart); transformers does not write this architecture whole, so serve the "
            "base with the artifact"
        )
