"""Write whole models with their tokenizers, completely or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from calibtune.artifacts.manifest import Artifact
from calibtune.errors import WorkFailed
from calibtune.files import keep_inputs, refuse_existing, write_json
from calibtune.models.loading import load_tokenizer
from calibtune.models.spec import ModelSpec


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
    """Return the tokenizer in a folder if there is one, else the base model's."""
    from transformers import AutoTokenizer

    if (folder / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(folder)
    return load_tokenizer(spec)


def save_model(model: Any, tokenizer: Any, output: Path, origin: Mapping[str, Any]) -> None:
    """Write a model, its tokenizer, and at last ``calibtune-origin.json``.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        output: Folder to write.
        origin: Content of ``calibtune-origin.json``: base model, method and parameters.

    Raises:
        WorkFailed: The folder cannot be written or the disk is full; the folder is then removed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(output, ignore_errors=True)
        raise WorkFailed(f"{output} cannot be written ({error}); free disk space or give another --output") from error
    write_json(output / "calibtune-origin.json", origin)
