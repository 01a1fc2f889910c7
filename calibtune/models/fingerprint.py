"""Tell one base model from another by a sample of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from calibtune.errors import UserError
from calibtune.spec import ModelSpec


def fingerprint(spec: ModelSpec) -> str | None:
    """Return a hash over the names, shapes and some values of a model's weights.

    It reads the first, middle and last row of each tensor, so two checkpoints of one training run differ in it, and
    copies of one model in other folders or other numbers of files do not.

    Args:
        spec: The model: a folder, or a hub id whose files are in the local cache.

    Returns:
        The hash, or None where no ``*.safetensors`` are at hand.
    """
    folder = _folder(spec)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    parts = {}
    try:
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open gives no iterator)
                    parts[name] = _tensor_hash(tensors.get_slice(name))
    except (SafetensorError, OSError):
        return None  # a damaged file is explained where the weights are loaded
    if not parts:
        return None
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode()).hexdigest()


def check_fingerprint(spec: ModelSpec, expected: str | None, artifact: Path | str) -> None:
    """Refuse a base model whose weights are not those that an artifact was fitted on.

    Args:
        spec: The base model.
        expected: The artifact's fingerprint of it; None where the artifact has none.
        artifact: The artifact's folder, for the message.

    Raises:
        UserError: The weights differ.
    """
    found = fingerprint(spec) if expected is not None else None
    if found is not None and found != expected:
        raise UserError(
            f"--model {spec.name} has other weights than the model that {artifact} was fitted on; give that model, or "
            "fit again on this one"
        )


def _folder(spec: ModelSpec) -> Path | None:
    if Path(spec.name).is_dir():
        return Path(spec.name)
    try:
        return Path(snapshot_download(spec.name, revision=spec.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _tensor_hash(tensor: Any) -> str:
    shape = tensor.get_shape()
    digest = hashlib.sha256(f"{tensor.get_dtype()} {shape}".encode())
    rows = [slice(row, row + 1) for row in sorted({0, shape[0] // 2, shape[0] - 1})] if shape else [...]
    for row in rows:
        digest.update(tensor[row].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
