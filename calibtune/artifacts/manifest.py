"""What a fit leaves behind: the manifest, written last, and the Hugging Face model card."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibtune import __version__
from calibtune.errors import UserError
from calibtune.files import read_json, write_json, write_text
from calibtune.recipe import Recipe

MANIFEST = "calibtune.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "lm_eval", "numpy", "scipy")
#: What a fit says about itself, under the names that a leaderboard shows.
SHOWN = {"acc": "accuracy", "conf_ece_10": "conf-ECE, 10 bins", "cw_ece_10": "cw-ECE, 10 bins", "nll": "NLL (nats)"}


@dataclass(frozen=True)
class Artifact:
    """A finished artifact; its fields are the manifest's keys."""

    #: "adapter" (a PEFT folder), "model" (a whole model) or "temperature" (temperature.json, perhaps on an adapter).
    kind: str
    method: str
    model: str
    #: Commit of the base model on the hub, None for a local folder.
    revision: str | None
    tasks: tuple[str, ...]
    seed: int
    recipe: dict[str, Any]
    #: Hashes of the documents by role: "train" and "held_out".
    documents: dict[str, list[str]]
    #: Numbers of the held-out questions before and after, under the harness's names.
    before: dict[str, float]
    after: dict[str, float]
    versions: dict[str, str]
    seconds: float
    peak_memory_gib: float | None
    #: The fitted temperature, None for other methods.
    temperature: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write the card, and then the manifest: where it lies, the artifact is whole."""
        write_text(folder / "README.md", model_card(self))
        write_json(folder / MANIFEST, {"calibtune": __version__, **dataclasses.asdict(self)})


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact's manifest.

    Raises:
        UserError: The folder holds none, or not a whole one.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no {MANIFEST}, so it is no finished artifact; finish it with the same `calibtune fit` and "
            "--resume, or give another folder"
        )
    values = read_json(folder / MANIFEST)
    names = {field.name for field in dataclasses.fields(Artifact)}
    if missing := names - values.keys():
        raise UserError(
            f"{folder / MANIFEST} has no {sorted(missing)}; it was not written by this calibtune, fit again"
        )
    values["tasks"] = tuple(values["tasks"])
    return Artifact(**{name: values[name] for name in names})


def versions() -> dict[str, str]:
    """Versions of what a fit's numbers depend on, as far as installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, as JSON gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()}


def model_card(artifact: Artifact) -> str:
    """A model card whose model-index holds the held-out numbers after the fit, with those before in its text."""
    from huggingface_hub import EvalResult, ModelCardData

    task = ", ".join(artifact.tasks)
    results = [
        EvalResult(
            task_type="multiple-choice",
            dataset_type=artifact.tasks[0],
            dataset_name=f"{task} (held out from training)",
            metric_type=name,
            metric_name=shown,
            metric_value=round(artifact.after[name], 6),
            metric_args=_interval(artifact.after, name),
        )
        for name, shown in SHOWN.items()
        if name in artifact.after
    ]
    data = ModelCardData(
        model_name=f"{Path(artifact.model).name} {artifact.method}",
        base_model=artifact.model,
        library_name="peft" if artifact.kind == "adapter" else "transformers",
        tags=["calibration", "calibtune", artifact.method],
        eval_results=results,
    )
    rows = [
        f"| {shown} | {_cell(artifact.before, name)} | {_cell(artifact.after, name)} |"
        for name, shown in SHOWN.items()
        if name in artifact.after
    ]
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {data.model_name}\n\n"
        f"Made by `calibtune fit --method {artifact.method}` from `{artifact.model}` on {task}, seed {artifact.seed}.\n"
        f"`{MANIFEST}` holds the recipe, the document hashes and the versions.\n\n"
        f"Numbers of {len(artifact.documents['held_out'])} held-out questions, with 95 % intervals of the ECEs:\n\n"
        "| | before | after |\n|---|---|---|\n" + "\n".join(rows) + f"\n\n{usage(artifact)}\n"
    )


def base_model(model: str | None, artifact: Artifact | None) -> str:
    """The base to load: the one asked for, or the artifact's.

    Raises:
        UserError: Neither is given, or the artifact was made for another base.
    """
    if artifact is None or not artifact.model:
        if not model:
            raise UserError("--model is missing; give a hub id or a folder")
        return model
    if model and Path(model).name != Path(artifact.model).name:
        raise UserError(
            f"the artifact was fitted on {artifact.model}, not on {model}; give --model {artifact.model}, or fit one "
            f"for {model}"
        )
    return model or artifact.model


def own_tokenizer(artifact: Artifact) -> bool:
    """Whether the artifact is asked through its own tokenizer: the base's has no chat template, that one has.

    A temperature from a samples file saw no tokenizer.
    """
    return bool(artifact.recipe.get("chat_template")) and not artifact.recipe.get("samples")


def usage(artifact: Artifact) -> str:
    """How to evaluate the artifact with the harness alone."""
    tokenizer = ",tokenizer=THIS_FOLDER" if own_tokenizer(artifact) else ""
    if artifact.kind == "temperature":
        peft = f",peft={artifact.recipe['artifact']}" if artifact.recipe.get("artifact") else ""
        names = ",".join(f"{task}_scaled" for task in artifact.tasks)
        line = f"--model_args pretrained={artifact.model}{peft}{tokenizer} --include_path THIS_FOLDER --tasks {names}"
    elif artifact.kind == "adapter":
        model = f"pretrained={artifact.model},peft=THIS_FOLDER{tokenizer}"
        line = f"--model_args {model} --tasks {','.join(artifact.tasks)}"
    else:
        line = f"--model_args pretrained=THIS_FOLDER --tasks {','.join(artifact.tasks)}"
    chat = " --apply_chat_template" if artifact.recipe.get("apply_chat_template") else ""
    return f"```\nlm_eval --model hf {line}{chat}\n```"


def summary(artifact: Artifact, output: Path) -> str:
    """What came out of a fit, where it lies, and what to type next."""
    lines = [
        f"{artifact.method} in {artifact.seconds:.0f} s, held-out questions ({len(artifact.documents['held_out'])}):"
    ]
    for name, shown in SHOWN.items():
        if name in artifact.after:
            lines.append(f"  {shown:<18} {artifact.before[name]:.4f} -> {artifact.after[name]:.4f}")
    if artifact.temperature is not None:
        found = artifact.temperature
        lines.append(f"  T = {found['temperature']:.4f}  [{found['low']:.4f}, {found['high']:.4f}]")
        lines += [f"  warning: {text}" for text in found["warnings"]]
    lines.append(f"written to {output}")
    if artifact.model:
        words = ["eval", "--model", artifact.model, "--artifact", str(output), "--tasks", ",".join(artifact.tasks)]
        words += ["--output", f"{output}-eval", *["--apply-chat-template"] * artifact.recipe["apply_chat_template"]]
        if artifact.recipe.get("include_path"):
            words += ["--include-path", artifact.recipe["include_path"]]
        lines.append(f"next: python -m calibtune {shlex.join(words)}")
    return "\n".join(lines)


def _interval(numbers: Mapping[str, float], name: str) -> dict[str, float] | None:
    if f"{name}_low" not in numbers:
        return None
    return {"interval_95_low": round(numbers[f"{name}_low"], 6), "interval_95_high": round(numbers[f"{name}_high"], 6)}


def _cell(numbers: Mapping[str, float], name: str) -> str:
    interval = _interval(numbers, name)
    ends = f" [{numbers[name + '_low']:.4f}, {numbers[name + '_high']:.4f}]" if interval else ""
    return f"{numbers[name]:.4f}{ends}"
