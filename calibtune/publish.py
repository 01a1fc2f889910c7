"""Put an artifact onto the Hugging Face hub, or into a folder that shows what would go there."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from calibtune.artifacts.card import is_local, model_card
from calibtune.artifacts.manifest import MANIFEST, Artifact, read_artifact
from calibtune.endpoints.redaction import reason_without
from calibtune.errors import UserError, WorkFailed, reason
from calibtune.files import LOCK, WHOLE, keep_inputs, refuse_existing, sha256
from calibtune.locks import held
from calibtune.reporting.figures import reliability
from calibtune.reporting.style import png, styled
from harness_ext.intervals import wilson

logger = logging.getLogger(__name__)

CARD, FIGURE = "README.md", "reliability.png"
#: Files that a fit writes into its artifact; whatever else lies in the folder is not pushed.
OWN = (
    "calibtune.json",
    "temperature.json",
    "*_scaled.yaml",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Push an artifact to a repository of the hub, which is made where there is none.

    The token is the one of the environment (``HF_TOKEN``) or of ``hf auth login``.

    Args:
        folder: The artifact.
        repo: "ORG/NAME".
        private: Whether only its owners can see the repository.

    Returns:
        The repository's address.

    Raises:
        UserError: The folder holds no finished artifact of ``fit`` or a link, the repository's name is none, there is
            no token, or the repository is public and ``private`` is set.
        WorkFailed: The hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    _check_name(repo)
    files = staged(folder, repo)
    if not (token := get_token()):
        raise UserError(
            "there is no Hugging Face token; set HF_TOKEN or run `hf auth login` (--dry-run DIR needs none and writes "
            "what would be pushed)"
        )
    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=private or None, exist_ok=True))
        if private and not api.repo_info(repo).private:
            raise UserError(f"{address} is there and public; make it private on the hub, or leave out --private")
        operations: list[Any] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        api.create_commit(repo, operations, commit_message="Artifact of calibtune")
    except UserError:
        raise
    except Exception as error:  # huggingface_hub's HTTP library, and so its errors, differ by version
        told = reason_without(token, error)
        raise WorkFailed(f"{repo} was not pushed: {told}; see that the token may write there, and try again") from None
    return address


def write_dry(folder: Path, repo: str, output: Path) -> None:
    """Write what :func:`push` would push into a folder, without network.

    Raises:
        UserError: See :func:`push`; or the folder is not empty.
    """
    _check_name(repo)
    keep_inputs(output, folder)
    with held(output):
        refuse_existing(output, overwrite=False)
        for name, content in staged(folder, repo).items():
            (output / name).parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                (output / name).write_bytes(content)
            else:
                shutil.copyfile(content, output / name)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--repo {repo} is no name of a repository ({reason(error)}); give ORG/NAME") from None
    if "/" not in repo:
        raise UserError(f"--repo {repo} names no owner; give ORG/NAME")


def staged(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """Return what is pushed by name: the artifact's own files, its card, its figure, and at last all hashes.

    Raises:
        UserError: See :func:`push`.
    """
    if (folder / LOCK).exists():
        with held(folder):  # says who holds it
            pass
    artifact = read_artifact(folder)
    if artifact.foreign:
        raise UserError(f"{folder} is an adapter of another program; give what `calibtune fit` wrote")
    _warn_of_paths(artifact)
    files: dict[str, Path | bytes] = {}
    folders = [folder] + ([folder / artifact.own_adapter.name] if artifact.own_adapter else [])
    for path in sorted(path for each in folders for path in each.iterdir()):
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in OWN):
            if path.is_symlink() or not path.is_file():
                raise UserError(f"{path} is a link or a folder, not a file of the artifact; put the file in its place")
            files[str(path.relative_to(folder))] = path
    if picture := figure(artifact):
        files[FIGURE] = picture
    files[CARD] = model_card(artifact, repo, FIGURE if picture else None).encode()
    files[WHOLE] = json.dumps({"files": {name: _hash(content) for name, content in files.items()}}, indent=2).encode()
    return files


def _hash(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)


def _warn_of_paths(artifact: Artifact) -> None:
    """Say which paths of this machine the artifact names; those of models it also needs."""
    adapter = None if artifact.own_adapter else artifact.adapter
    needed = [name for name in (artifact.model, adapter) if name and is_local(name)]
    if needed:
        logger.warning("others do not have %s, on which the artifact stands: fit on a model of the hub", needed[-1])
    recipe = [value for value in artifact.recipe.values() if isinstance(value, str) and Path(value).is_absolute()]
    if paths := sorted({*recipe, *(name for name in needed if Path(name).is_absolute())}):
        logger.warning("%s names paths of this machine: %s", MANIFEST, ", ".join(paths))


def figure(artifact: Artifact) -> bytes | None:
    """Draw reliability diagrams of the held-out questions before and after the fit, as PNG; None without bins."""
    # A manifest's keys are sorted; before comes first.
    bins = {role: artifact.reliability[role] for role in ("before", "after") if role in artifact.reliability}
    entries: dict[str, Any] = {role: _entry(each, getattr(artifact, role)) for role, each in bins.items()}
    if not entries:
        return None
    buffer = io.BytesIO()
    with styled():
        png(reliability(entries), buffer)
    return buffer.getvalue()


def _entry(bins: list[list[float]], numbers: dict[str, float]) -> dict[str, Any]:
    """Return the bins of a manifest as the report's figures take them."""
    count, accuracy, confidence = (list(column) for column in zip(*bins, strict=True))
    total = int(sum(count))
    ends = [wilson(each * size, int(size)) if size else (0.0, 0.0) for each, size in zip(accuracy, count, strict=True)]
    mean = sum(size * each for size, each in zip(count, confidence, strict=True)) / total
    return {
        "questions": total,
        "numbers": {**numbers, "mean_confidence": mean},
        "bins": {
            "count": count,
            "accuracy": accuracy,
            "confidence": confidence,
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
        },
    }
