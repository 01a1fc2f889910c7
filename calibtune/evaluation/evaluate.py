"""Evaluating a base model or an artifact through lm_eval, into lm_eval's own result and sample files."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import make_table
from safetensors import SafetensorError

from calibtune.artifacts.manifest import Artifact, base_model, own_tokenizer, read_artifact
from calibtune.artifacts.tasks import SUFFIX, write_scaled_tasks
from calibtune.data.examples import load_tasks, task_manager
from calibtune.errors import UserError, WorkFailed, is_out_of_memory
from calibtune.evaluation.checks import check_disjoint, check_model, check_output, check_shots
from calibtune.files import read_json
from calibtune.models.adapters import load_adapter
from calibtune.models.loading import found_device, load_base, load_tokenizer
from calibtune.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, on what, how."""

    tasks: tuple[str, ...]
    output: Path
    #: Hub id or folder; None: the artifact's base.
    model: str | None = None
    artifact: Path | None = None
    #: None: as the artifact was fitted.
    apply_chat_template: bool | None = None
    #: "none", "nf4", or None: as the artifact was fitted.
    quantization: str | None = None
    precision: str = "bf16"
    batch_size: str = "16"
    limit: int | None = None
    num_fewshot: int | None = None
    device: str | None = None
    include_path: str | None = None
    #: "hf", or "hf-prefix"; see :mod:`calibtune.evaluation.hf_prefix`.
    backend: str = "hf"
    trust_remote_code: bool = False


def evaluate(options: Evaluation) -> dict[str, Any]:
    """Run lm_eval.

    Args:
        options: What and how.

    Returns:
        lm_eval's results, with ``samples`` and the ``folder`` that its files were written to; nothing in all processes
        but the first.

    Raises:
        UserError: Flags out of range, an output that cannot be written, a model that cannot be loaded or asked for
            letters, an unknown task, another base, or evaluated documents that the artifact was fitted on.
        WorkFailed: Out of memory, or the results were not written.
    """
    check_options(options)
    check_output(options.output)
    if options.backend == "hf-prefix":
        import calibtune.evaluation.hf_prefix  # noqa: F401  (registers it)
    artifact = read_artifact(options.artifact) if options.artifact else None
    arguments = model_arguments(options, base_model(options.model, artifact), artifact)
    recipe = _recipe(options, arguments["pretrained"], artifact)
    chat = options.apply_chat_template
    if chat is None:
        chat = bool(artifact and artifact.recipe["apply_chat_template"])
    check_model(recipe, arguments, chat)
    names, include_path = options.tasks, options.include_path
    tasks = load_tasks(names, include_path)
    check_shots(tasks, options.num_fewshot)
    check_disjoint(tasks, artifact)
    if artifact is not None and artifact.kind == "temperature":
        names, include_path = scaled(options, artifact)
    tracker = EvaluationTracker(output_path=str(options.output))
    try:
        results = simple_evaluate(
            model=_load(options, arguments, recipe),
            model_args=arguments,
            tasks=list(names),
            num_fewshot=options.num_fewshot,
            batch_size=options.batch_size,
            device=options.device or found_device(),
            limit=options.limit,
            apply_chat_template=chat,
            log_samples=True,
            evaluation_tracker=tracker,
            task_manager=task_manager(names, include_path),
            bootstrap_iters=0,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise WorkFailed(
            f"out of memory with --batch-size {options.batch_size}; give a smaller one, or auto"
        ) from error
    if results is None:
        # lm_eval gives results on the first process alone.
        return {}
    # The harness was given the loaded model; its files name the backend, as where it loads one itself.
    results["config"]["model"] = tracker.general_config_tracker.model_source = options.backend
    samples = results.pop("samples")
    folder = save(tracker, results, samples)
    print(make_table(results))
    return {**results, "samples": samples, "folder": folder}


def check_options(options: Evaluation) -> None:
    """Refuse numbers that lm_eval takes for others, or stumbles over once the model is loaded.

    Raises:
        UserError: With the flag and its value.
    """
    if not options.tasks:
        raise UserError("--tasks names no task; give one or more, separated by commas")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}; give at least 1, or leave it out for all questions")
    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise UserError(f"--num-fewshot is {options.num_fewshot}; give 0 or more")
    if not re.fullmatch(r"[1-9]\d*|auto(:[1-9]\d*)?", options.batch_size):
        raise UserError(f"--batch-size is {options.batch_size!r}; give a number from 1 up, or auto")


def save(tracker: EvaluationTracker, results: dict[str, Any], samples: dict[str, list[Any]]) -> Path:
    """Write lm_eval's files, and make sure of it: lm_eval logs what goes wrong there and goes on.

    Returns:
        The folder that they are in.

    Raises:
        WorkFailed: A file is missing or not whole.
    """
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    folder = Path(str(tracker.output_path)) / str(tracker.general_config_tracker.model_name_sanitized)
    date = getattr(tracker, "date_id", "")
    file = folder / f"results_{date}.json"
    try:
        read_json(file)
        for task in results["configs"]:
            file = folder / f"samples_{task}_{date}.jsonl"
            with file.open("rb") as lines:
                if sum(line.endswith(b"\n") for line in lines) != len(samples[task]):
                    raise WorkFailed("some lines are missing")
    except (OSError, UserError) as error:
        raise WorkFailed(
            f"{file} was not written whole; see whether the disk is full, and run the same command again"
        ) from error
    return folder


def scaled(options: Evaluation, artifact: Artifact) -> tuple[tuple[str, ...], str]:
    """Names of the tasks that apply the artifact's temperature, and the folder of their YAMLs.

    Raises:
        UserError: A task has no such form.
    """
    assert options.artifact is not None
    assert artifact.temperature is not None
    # Written anew, since the harness may have moved since the fit.
    written = write_scaled_tasks(options.artifact, artifact.temperature["temperature"])
    for name in options.tasks:
        if name + SUFFIX not in written:
            known = ", ".join(name.removesuffix(SUFFIX) for name in written)
            raise UserError(f"--tasks {name}: a temperature is applied by our letter tasks alone: {known}")
    return tuple(name + SUFFIX for name in options.tasks), str(options.artifact)


def model_arguments(options: Evaluation, model: str, artifact: Artifact | None) -> dict[str, Any]:
    """The arguments of lm_eval's hf backend, as one would write them in ``--model_args``."""
    arguments: dict[str, Any] = {
        "pretrained": model,
        "dtype": {"bf16": "bfloat16", "fp32": "float32"}[options.precision],
        "softmax_dtype": "float32",
        "trust_remote_code": options.trust_remote_code,
    }
    if artifact is not None and artifact.kind == "model":
        arguments["pretrained"] = str(options.artifact)
    elif artifact is not None and artifact.kind == "adapter":
        arguments["peft"] = str(options.artifact)
    elif artifact is not None and artifact.recipe.get("artifact"):
        arguments["peft"] = artifact.recipe["artifact"]
    if artifact is not None and own_tokenizer(artifact):
        # The base's tokenizer has no chat template; the artifact's copy of it has.
        arguments["tokenizer"] = str(options.artifact)
    return arguments


def _recipe(options: Evaluation, model: str, artifact: Artifact | None) -> Recipe:
    """What the functions that a fit loads its base with are told of an evaluation."""
    chosen = options.quantization or (artifact.recipe["quantization"] if artifact else "none")
    return Recipe(
        method="temperature",
        model=model,
        quantization="nf4" if chosen == "nf4" else "none",
        precision="fp32" if options.precision == "fp32" else "bf16",
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )


def _load(options: Evaluation, arguments: dict[str, Any], recipe: Recipe) -> Any:
    """The harness's model.

    Raises:
        UserError: It cannot be loaded, or the adapter was made for another.
    """
    backend = get_model(options.backend)
    if recipe.quantization == "nf4":
        # The hf backend's arguments cannot say so.
        model = load_base(recipe)
        if "peft" in arguments:
            model = load_adapter(model, Path(arguments["peft"]))
        tokenizer = load_tokenizer(dataclasses.replace(recipe, model=arguments.get("tokenizer", recipe.model)))
        arguments["quantization"] = "nf4"
        return backend(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size, softmax_dtype="float32")
    more = {"batch_size": options.batch_size, "device": options.device or found_device()}
    try:
        return backend.create_from_arg_obj(arguments, more)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        if "peft" in arguments and not isinstance(error, OSError):
            raise UserError(
                f"the adapter {arguments['peft']} cannot be put on {recipe.model}; give the base that it was fitted "
                f"on ({reason:.300})"
            ) from error
        raise UserError(f"--model {recipe.model} cannot be loaded: {reason:.300}") from error
