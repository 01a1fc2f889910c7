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
class Artefact:
    """A finished artefact; its fields are the manifest's keys."""

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
        """Write the card, and then the manifest: where it lies, the artefact is whole."""
        write_text(folder / "README.md", model_card(self))
        write_json(folder / MANIFEST, {"calibtune": __version__, **dataclasses.asdict(self)})


def read_artefact(folder: Path) -> Artefact:
    """Read an artefact's manifest.

    Raises:
        UserError: The folder holds none, or not a whole one.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no {MANIFEST}, so it is no finished artefact; finish it with the same `calibtune fit` and "
            "--resume, or give another folder"
        )
    values = read_json(folder / MANIFEST)
    names = {field.name for field in dataclasses.fields(Artefact)}
    if missing := names - values.keys():
        raise UserError(
            f"{folder / MANIFEST} has no {sorted(missing)}; it was not written by this calibtune, fit again"
        )
    values["tasks"] = tuple(values["tasks"])
    return Artefact(**{name: values[name] for name in names})


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


def model_card(artefact: Artefact) -> str:
    """A model card whose model-index holds the held-out numbers after the fit, with those before in its text."""
    from huggingface_hub import EvalResult, ModelCardData

    task = ", ".join(artefact.tasks)
    results = [
        EvalResult(
            task_type="multiple-choice",
            dataset_type=artefact.tasks[0],
            dataset_name=f"{task} (held out from training)",
            metric_type=name,
            metric_name=shown,
            metric_value=round(artefact.after[name], 6),
            metric_args=_interval(artefact.after, name),
        )
        for name, shown in SHOWN.items()
        if name in artefact.after
    ]
    data = ModelCardData(
        model_name=f"{Path(artefact.model).name} {artefact.method}",
        base_model=artefact.model,
        library_name="peft" if artefact.kind == "adapter" else "transformers",
        tags=["calibration", "calibtune", artefact.method],
        eval_results=results,
    )
    rows = [
        f"| {shown} | {_cell(artefact.before, name)} | {_cell(artefact.after, name)} |"
        for name, shown in SHOWN.items()
        if name in artefact.after
    ]
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {data.model_name}\n\n"
        f"Made by `calibtune fit --method {artefact.method}` from `{artefact.model}` on {task}, seed {artefact.seed}.\n"
        f"`{MANIFEST}` holds the recipe, the document hashes and the versions.\n\n"
        f"Numbers of {len(artefact.documents['held_out'])} held-out questions, with 95 % intervals of the ECEs:\n\n"
        "| | before | after |\n|---|---|---|\n" + "\n".join(rows) + f"\n\n{usage(artefact)}\n"
    )


def base_model(model: str | None, artefact: Artefact | None) -> str:
    """The base to load: the one asked for, or the artefact's.

    Raises:
        UserError: Neither is given, or the artefact was made for another base.
    """
    if artefact is None or not artefact.model:
        if not model:
            raise UserError("--model is missing; give a hub id or a folder")
        return model
    if model and Path(model).name != Path(artefact.model).name:
        raise UserError(
            f"the artefact was fitted on {artefact.model}, not on {model}; give --model {artefact.model}, or fit one "
            f"for {model}"
        )
    return model or artefact.model


def own_tokenizer(artefact: Artefact) -> bool:
    """Whether the artefact is asked through its own tokenizer: the base's has no chat template, that one has.

    A temperature from a samples file saw no tokenizer.
    """
    return bool(artefact.recipe.get("chat_template")) and not artefact.recipe.get("samples")


def usage(artefact: Artefact) -> str:
    """How to evaluate the artefact with the harness alone."""
    tokenizer = ",tokenizer=THIS_FOLDER" if own_tokenizer(artefact) else ""
    if artefact.kind == "temperature":
        peft = f",peft={artefact.recipe['artifact']}" if artefact.recipe.get("artifact") else ""
        names = ",".join(f"{task}_scaled" for task in artefact.tasks)
        line = f"--model_args pretrained={artefact.model}{peft}{tokenizer} --include_path THIS_FOLDER --tasks {names}"
    elif artefact.kind == "adapter":
        model = f"pretrained={artefact.model},peft=THIS_FOLDER{tokenizer}"
        line = f"--model_args {model} --tasks {','.join(artefact.tasks)}"
    else:
        line = f"--model_args pretrained=THIS_FOLDER --tasks {','.join(artefact.tasks)}"
    chat = " --apply_chat_template" if artefact.recipe.get("apply_chat_template") else ""
    return f"```\nlm_eval --model hf {line}{chat}\n```"


def summary(artefact: Artefact, output: Path) -> str:
    """What came out of a fit, where it lies, and what to type next."""
    lines = [
        f"{artefact.method} in {artefact.seconds:.0f} s, held-out questions ({len(artefact.documents['held_out'])}):"
    ]
    for name, shown in SHOWN.items():
        if name in artefact.after:
            lines.append(f"  {shown:<18} {artefact.before[name]:.4f} -> {artefact.after[name]:.4f}")
    if artefact.temperature is not None:
        found = artefact.temperature
        lines.append(f"  T = {found['temperature']:.4f}  [{found['low']:.4f}, {found['high']:.4f}]")
        lines += [f"  warning: {text}" for text in found["warnings"]]
    lines.append(f"written to {output}")
    if artefact.model:
        words = ["eval", "--model", artefact.model, "--artifact", str(output), "--tasks", ",".join(artefact.tasks)]
        words += ["--output", f"{output}-eval", *["--apply-chat-template"] * artefact.recipe["apply_chat_template"]]
        if artefact.recipe.get("include_path"):
            words += ["--include-path", artefact.recipe["include_path"]]
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
