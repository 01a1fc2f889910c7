"""Write whole models: where they may lie, with which tokenizer, and all of them or nothing."""

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
from calibtune.spec import ModelSpec


def check_model_output(output: Path, overwrite: bool, folder: Path, artifact: Artifact) -> None:
    """Refuse an output folder before the model is loaded; what lies there is removed when the new one is ready.

    Raises:
        UserError: It holds files and ``overwrite`` is off, or what is read lies in it.
    """
    if overwrite:
        keep_inputs(output, Path.cwd(), folder, artifact.model, artifact.adapter)
    else:
        refuse_existing(output, overwrite)


def own_or_base_tokenizer(folder: Path, spec: ModelSpec) -> Any:
    """Return the tokenizer that lies in a folder, or the base model's."""
    from transformers import AutoTokenizer

    if (folder / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(folder)
    return load_tokenizer(spec)


def save_model(model: Any, tokenizer: Any, output: Path, origin: Mapping[str, Any]) -> None:
    """Write a model with its tokenizer, and last the file that says what it was made of.

    Raises:
        WorkFailed: The folder cannot be written, or the disk is full; nothing is left there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(output, ignore_errors=True)
        raise WorkFailed(f"{output} cannot be written ({error}); free space there, or give another folder") from error
    write_json(output / "calibtune-origin.json", origin)
