"""Find out what a name stands for: a model, an artifact, or an adapter, in a folder or on the hub."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from calibtune.artifacts.manifest import ADAPTER, MANIFEST, read_artifact
from calibtune.errors import UserError
from calibtune.processes import is_first_process

logger = logging.getLogger(__name__)

#: What is read of an adapter on the hub.
FILES = ["adapter_*", "*token*", "*.jinja", "*.json", "*.model"]
#: What is read of an artifact on the hub beside it.
MORE = ["*.yaml", "model*.safetensors", "adapter/*"]


def named(
    model: str | None, artifact: Path | None, revision: str | None = None
) -> tuple[str | None, Path | None, str | None]:
    """Sort out what the user named; an adapter given as the model is an artifact on its own base.

    Args:
        model: What was given as ``--model``.
        artifact: What was given as ``--artifact``.
        revision: Of the model on the hub.

    Returns:
        The base model, None where it is the artifact's; the artifact's local folder; and the base model's revision.

    Raises:
        UserError: The adapter is not the one that the artifact was fitted on, or stands on another adapter.
    """
    folder = None if artifact is None else artifact_folder(artifact)
    if adapter := adapter_folder(model, revision) if model else None:
        fitted = adapter if folder is None else read_artifact(folder).adapter
        if fitted is None or Path(fitted).resolve() != adapter.resolve():
            raise UserError(
                f"--artifact {artifact} was fitted on {fitted or 'a base model'}, not on the adapter {model}; leave "
                "out --model, or fit again on it"
            )
        model, folder, revision = None, folder or adapter, None
    if folder is not None and (folder / ADAPTER).is_file():
        _check_base(folder, model)
    return model, folder, revision


def artifact_folder(artifact: Path) -> Path:
    """Return the local folder of an artifact, which is downloaded where the name is that of one on the hub."""
    name = str(artifact)
    if artifact.exists() or artifact.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        return artifact
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_download(name, MANIFEST)
        return Path(snapshot_download(name, allow_patterns=[*FILES, *MORE]))
    except (OSError, HFValidationError):
        return adapter_folder(name) or artifact  # what is wrong with it is told where it is read


def _check_base(folder: Path, model: str | None) -> None:
    """Say what another program's adapter stands on; refuse another adapter there."""
    artifact = read_artifact(folder)
    if not artifact.foreign:
        return
    if artifact.model and adapter_folder(artifact.model, artifact.revision):
        below, above = shlex.quote(artifact.model), shlex.quote(str(folder))
        raise UserError(
            f"{folder} is an adapter on {artifact.model}, which is an adapter itself; merge that one first: python -m "
            f"calibtune merge --artifact {below} --output MERGED, then give --model MERGED --artifact {above}"
        )
    if not is_first_process():
        return
    logger.info("%s is an adapter (%s) of another program: nothing is known of its questions", folder, artifact.method)
    if model and artifact.model and Path(model).name != Path(artifact.model).name:
        logger.warning(
            "%s names %s as its base, and %s is given; nothing tells whether they are one model",
            folder,
            artifact.model,
            model,
        )


def adapter_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of the adapter that a folder or hub id holds, None where it holds a model or nothing.

    Args:
        name: Folder or hub id; an adapter on the hub is downloaded.
        revision: Branch, tag or commit on the hub.
    """
    path = Path(name)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")):
        return path if (path / ADAPTER).is_file() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except (OSError, HFValidationError):
        return None  # which is explained where the model is loaded
