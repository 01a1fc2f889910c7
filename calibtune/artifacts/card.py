"""Describe an artifact: the Hugging Face model card, and the summary printed after a fit."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibtune.artifacts.manifest import MANIFEST, Artifact, tokenizer_folder
from calibtune.data.letter_tasks import SUFFIX
from calibtune.data.tasks import installed_tasks
from calibtune.recipe import flag
from calibtune.text import markdown, visible
from harness_ext.orders import SUFFIX as ORDERS
from harness_ext.orders import count_of
from harness_ext.registry import METRICS

#: Metrics in card and summary, with their titles.
SHOWN = {name: METRICS[name].title for name in ("acc", "conf_ece_10", "cw_ece_10", "nll")}


def model_card(artifact: Artifact, repo: str | None = None, figure: str | None = None) -> str:
    """Return a model card with the held-out metrics before and after the fit.

    The card's model-index has the metrics after the fit.

    Args:
        artifact: The artifact.
        repo: Its id on the hub, which then stands in the commands; None: it lies in a folder.
        figure: Path of a figure in the repository.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task = ", ".join(artifact.tasks)
    results = [
        EvalResult(
            task_type="multiple-choice",
            dataset_type=artifact.tasks[0],
            dataset_name=f"{task} ({_measured_on(artifact)})",
            metric_type=name,
            metric_name=shown,
            metric_value=round(artifact.after[name], 6),
            metric_args=_interval(artifact.after, name),
        )
        for name, shown in SHOWN.items()
        if name in artifact.after
    ]
    data = ModelCardData(
        model_name=f"{Path(artifact.model).name} {artifact.method}"
        if artifact.model
        else f"{artifact.method} of {task}",
        # The hub takes no base that is not on it.
        base_model=None if repo and is_local(artifact.model) else artifact.model or None,
        library_name="peft" if artifact.kind == "adapter" else "transformers",
        tags=["calibration", "calibtune", artifact.method],
        eval_results=results,
    )
    rows = [
        f"| {shown} | {_cell(artifact.before, name)} | {_cell(artifact.after, name)} |"
        for name, shown in SHOWN.items()
        if name in artifact.after
    ]
    base = _base(artifact, repo)
    picture = f"![Reliability diagrams of the held-out questions, before and after]({figure})\n\n" if figure else ""
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {_text(data.model_name)}\n\n"
        f"Made by `calibtune fit --method {artifact.method}` from {base} on {_text(task)}, seed {artifact.seed}.\n"
        f"{_questions(artifact)}\n\n"
        f"{_numbers(artifact, rows)}{picture}"
        f"Evaluate it again{_placeholders(artifact, repo)}:\n\n{usage(artifact, repo)}\n\n"
        f"{_python(artifact, repo)}"
    )


def is_local(name: str) -> bool:
    """Return whether a model's name is a folder's rather than an id of the hub."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or Path(name).exists()


def _base(artifact: Artifact, repo: str | None) -> str:
    """Return what the artifact was made from; who reads it on the hub has no use for a path."""
    if not artifact.model:
        return "a samples file, which does not name its model,"
    return _text(Path(artifact.model).name if repo and is_local(artifact.model) else artifact.model)


def _questions(artifact: Artifact) -> str:
    """Say which questions the artifact knows, and the hash of those that it was fitted on."""
    role = "held_out" if artifact.temperature else "train"
    keys = artifact.documents[role]
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    return (
        f"Fitted on {len(keys)} questions. `{MANIFEST}` holds their hashes (SHA-256 of all: `{digest[:16]}`), the "
        "recipe and the versions."
    )


def _placeholders(artifact: Artifact, repo: str | None) -> str:
    """Say what stands for what in the command."""
    words = usage(artifact, repo)
    told = {
        "THIS_FOLDER": "THIS_FOLDER is the one that holds this card",
        "THE_MODEL": "THE_MODEL is the one that the samples are from",
        "THE_BASE": "THE_BASE is the base model, which is not named here since it was a local folder",
    }
    found = [text for name, text in told.items() if name in words]
    return f"; {', '.join(found)}" if found else ""


def _measured_on(artifact: Artifact) -> str:
    return "cross-fitted" if artifact.temperature or artifact.strength is not None else "held out from training"


def _numbers(artifact: Artifact, rows: list[str]) -> str:
    """Return the table of the held-out questions; a fit that held none out has none."""
    if not rows:
        return "No question was held out, so nothing was measured; evaluate it on other questions.\n\n"
    count = len(artifact.documents["held_out"])
    cross = "Each question is scaled by a T that was fitted on others. " if artifact.temperature else ""
    if artifact.strength is not None:
        cross = (
            f"The adapter acts at {artifact.strength:g} of its strength, and each question at one chosen on others. "
        )
    asked = f"Each is asked in {count_of(artifact.orders)}. " if artifact.orders != 1 else ""
    return (
        f"{cross}{asked}Numbers of {count} held-out questions, with 95 % intervals of the ECEs:\n\n"
        "| | before | after |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
    )


def usage(artifact: Artifact, repo: str | None = None) -> str:
    """Return the command that evaluates the artifact, as Markdown: lm_eval's where it can.

    Args:
        artifact: The artifact.
        repo: Its id on the hub; None: it lies in a folder.
    """
    place = repo or "THIS_FOLDER"
    if _only_here(artifact) or (repo and artifact.kind == "temperature"):
        words = ["--model", "THE_MODEL"] * (not artifact.model) + ["--artifact", place]
        words += ["--model", "THE_BASE"] * bool(artifact.model and repo and is_local(artifact.model))
        words += [*_question_words(artifact), "--output", "out"]
        return f"    python -m calibtune eval {visible(shlex.join(words))}"
    base = artifact.model or "THE_MODEL"
    base = "THE_BASE" if repo and is_local(base) else base
    given: dict[str, Any] = {"pretrained": place if artifact.kind == "model" else base}
    own = artifact.own_adapter and f"{place}/{artifact.own_adapter.name}"
    if adapter := place if artifact.kind == "adapter" else own or artifact.adapter:
        given["peft"] = adapter
    if (folder := tokenizer_folder(artifact)) and artifact.kind != "model":
        given["tokenizer"] = place if folder == artifact.folder else folder
    # What neither is in the artifact's files nor lm_eval's default.
    given |= {
        name: artifact.recipe[name] for name in ("add_bos_token", "chat_template_args") if artifact.recipe.get(name)
    }
    scaled = artifact.kind == "temperature"
    orders = ORDERS if artifact.orders != 1 else ""
    tasks = [task.removesuffix(orders) + orders for task in artifact.tasks]
    names = ",".join(f"{task}{SUFFIX}" if scaled else task for task in tasks)
    words = ["lm_eval", "--model", "hf", "--model_args", _model_args(given)]
    words += ["--include_path", place] * scaled + ["--tasks", names]
    words += ["--apply_chat_template"] * bool(artifact.recipe.get("apply_chat_template"))
    # Indented: a name with backticks would end a fenced block.
    return f"    {visible(shlex.join(words))}"


def _python(artifact: Artifact, repo: str | None) -> str:
    """Return the lines of Python that ask the artifact one question, for use in its folder or with its id."""
    place = repo or "."
    where = "In Python" if repo else "In Python, in this folder"
    if not artifact.model or _served(artifact):  # a temperature of answers alone
        return (
            f"{where}, with log-probabilities of letters, shape (N, K):\n\n"
            "    import calibtune as ct\n"
            f"    print(ct.load({place!r}).probs([[-0.1, -2.5, -4.0]]))\n"
        )
    base = "THE_BASE" if repo and is_local(artifact.model) else artifact.model
    own = artifact.own_adapter
    model = own.name if own and not repo else None if own else artifact.adapter
    model = (model or base) if artifact.kind == "temperature" else place
    revision = f", revision={artifact.revision!r}" if model == artifact.model and artifact.revision else ""
    subfolder = {"subfolder": own.name} if own and repo else None
    below = f"    model.load_adapter({place!r}, adapter_kwargs={subfolder})\n" if subfolder else ""
    tokenizer = place if artifact.kind == "model" or tokenizer_folder(artifact) == artifact.folder else base
    return (
        f"{where}:\n\n"
        "    import calibtune as ct\n"
        "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"    model = AutoModelForCausalLM.from_pretrained({model!r}{revision})\n{below}"
        f"    tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})\n"
        f'    print(ct.load({place!r}).score(model, tokenizer, "Which is hot?", ["ice", "fire", "snow"]))\n'
    )


def _model_args(given: Mapping[str, Any]) -> str:
    """Return lm_eval's model_args; what its short form cannot say is JSON."""
    if any(isinstance(value, dict) for value in given.values()):
        return json.dumps(given)
    return ",".join(f"{name}={value}" for name, value in given.items())


def _only_here(artifact: Artifact) -> bool:
    """Return whether the harness alone cannot ask the artifact's questions as they were asked."""
    recipe = artifact.recipe
    others = artifact.kind == "temperature" and not set(artifact.tasks) <= installed_tasks().keys()
    return bool(recipe.get("data") or recipe.get("as_letters") or others or _served(artifact)) and bool(artifact.model)


def _served(artifact: Artifact) -> bool:
    """Return whether a server has the model, whose weights are not at hand."""
    return artifact.recipe.get("backend") == "api"


def _question_words(artifact: Artifact) -> list[str]:
    """Return the options of ``calibtune eval`` that name the questions of the fit, and the server that was asked."""
    recipe = artifact.recipe
    server = ["--backend", "api", *(["--base-url", recipe["base_url"]] if recipe.get("base_url") else [])]
    tasks = ",".join(recipe["tasks"]) if recipe.get("data") else ",".join(artifact.tasks)
    words = ["--tasks", tasks] if tasks else []
    for name in ("data", "columns", "include_path"):
        words += [flag(name), recipe[name]] if recipe.get(name) else []
    words += [flag(name) for name in ("skip_bad_rows", "as_letters") if recipe.get(name)]
    return words + server * _served(artifact)


def summary(artifact: Artifact, output: Path) -> str:
    """Return the text printed after a fit: metrics, output folder and the next command."""
    kernels = " with Liger's kernels" if artifact.recipe.get("liger_kernel") else ""
    lines = [
        f"{artifact.method} in {artifact.seconds:.0f} s{kernels}, {len(artifact.documents['held_out'])} questions "
        f"({_measured_on(artifact)}):"
    ]
    for name, shown in SHOWN.items():
        if name in artifact.after:
            lines.append(f"  {shown:<18} {artifact.before[name]:.4f} -> {artifact.after[name]:.4f}")
    if artifact.temperature is not None:
        found = artifact.temperature
        lines.append(f"  T = {found['temperature']:.4f}  [{found['low']:.4f}, {found['high']:.4f}]")
        lines += [f"  warning: {text}" for text in found["warnings"]]
    if artifact.strength is not None:
        lines.append(f"  strength = {artifact.strength:g}")
    lines.append(f"written to {output}")
    if artifact.model:
        words = ["eval", "--model", artifact.model, "--artifact", str(output), *_question_words(artifact)]
        words += ["--output", f"{output}-eval", *["--apply-chat-template"] * artifact.recipe["apply_chat_template"]]
        lines.append(f"next: python -m calibtune {visible(shlex.join(words))}")
    return "\n".join(lines)


def _text(name: str | None) -> str:
    return markdown(visible(name or ""))


def _interval(numbers: Mapping[str, float], name: str) -> dict[str, float] | None:
    if f"{name}_low" not in numbers:
        return None
    return {"interval_95_low": round(numbers[f"{name}_low"], 6), "interval_95_high": round(numbers[f"{name}_high"], 6)}


def _cell(numbers: Mapping[str, float], name: str) -> str:
    interval = _interval(numbers, name)
    ends = f" [{numbers[name + '_low']:.4f}, {numbers[name + '_high']:.4f}]" if interval else ""
    return f"{numbers[name]:.4f}{ends}"
