"""Write and read an artifact's manifest: model, recipe, documents, metrics and versions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibtune import __version__
from calibtune.errors import UserError
from calibtune.files import read_json, write_json
from calibtune.models.spec import ModelSpec

MANIFEST = "calibtune.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "lm_eval", "numpy", "scipy")


@dataclass(frozen=True)
class Artifact:
    """Describe a finished artifact; its fields are the manifest's keys."""

    #: "adapter" (PEFT), "model" (full weights) or "temperature" (T of a base model or an adapter).
    kind: str
    method: str
    model: str
    #: Commit of the base model on the hub; None for a local folder.
    revision: str | None
    tasks: tuple[str, ...]
    seed: int
    recipe: dict[str, Any]
    #: Hashes of the documents by role: "train" and "held_out".
    documents: dict[str, list[str]]
    #: Metrics on the held-out questions before and after the fit, by the harness's names.
    before: dict[str, float]
    after: dict[str, float]
    versions: dict[str, str]
    seconds: float
    peak_memory_gib: float | None
    #: The fitted temperature; None for other methods.
    temperature: dict[str, Any] | None = None

    @property
    def spec(self) -> ModelSpec:
        """Return the base model as the fit loaded it, but without trust in remote code.

        A manifest can come from someone else, so only the present user may grant that trust.
        """
        names = {item.name for item in dataclasses.fields(ModelSpec)} - {"name", "revision", "trust_remote_code"}
        kept = {name: self.recipe[name] for name in names if name in self.recipe}
        return ModelSpec(name=self.model, revision=self.revision, **kept)

    @property
    def adapter(self) -> str | None:
        """Return the folder of the adapter that a temperature was fitted on, or None."""
        return self.recipe.get("artifact")


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact's manifest.

    Raises:
        UserError: The folder has no manifest, or it lacks keys.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} has no {MANIFEST}, so it is no finished artifact; finish the fit by running the same command "
            "with --resume, or give another folder"
        )
    values = read_json(folder / MANIFEST)
    names = {field.name for field in dataclasses.fields(Artifact)}
    if missing := names - values.keys():
        raise UserError(
            f"{folder / MANIFEST} lacks the keys {', '.join(sorted(missing))}, so another version of calibtune wrote "
            "it; fit again with this version"
        )
    values["tasks"] = tuple(values["tasks"])
    return Artifact(**{name: values[name] for name in names})


def write_manifest(artifact: Artifact, folder: Path) -> None:
    """Write an artifact's manifest; write it last, because it marks the artifact as finished."""
    write_json(folder / MANIFEST, {"calibtune": __version__, **dataclasses.asdict(artifact)})


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that a fit's results depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def base_model(model: str | None, artifact: Artifact | None) -> str:
    """Return the base model to load: ``model`` if given, else the artifact's.

    Raises:
        UserError: Neither is given, or the artifact was fitted on another base model.
    """
    if artifact is None or not artifact.model:
        if not model:
            raise UserError("--model is missing; give a hub id or a folder")
        return model
    if model and Path(model).name != Path(artifact.model).name:
        raise UserError(
            f"the artifact was fitted on {artifact.model}, not on {model}; give --model {artifact.model}, or an "
            f"artifact fitted on {model}"
        )
    return model or artifact.model


def own_tokenizer(artifact: Artifact) -> bool:
    """Return whether the artifact needs its own tokenizer, because the base's has no chat template.

    A temperature fitted on a samples file never needs one.
    """
    return bool(artifact.recipe.get("chat_template")) and not artifact.recipe.get("samples")
