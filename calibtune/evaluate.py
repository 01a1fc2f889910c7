"""Evaluating a base model or an artefact through lm_eval, into lm_eval's own result and sample files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import make_table

from calibtune.artefact import Artefact, read_artefact
from calibtune.errors import UserError, WorkFailed, is_out_of_memory
from calibtune.examples import document_hash, load_tasks, question_text, task_manager
from calibtune.modeling import found_device
from calibtune.recipe import Recipe
from calibtune.scaled_tasks import SUFFIX, write_scaled_tasks


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, on what, how."""

    tasks: tuple[str, ...]
    output: Path
    #: Hub id or folder; None: the artefact's base.
    model: str | None = None
    artifact: Path | None = None
    #: None: as the artefact was fitted.
    apply_chat_template: bool | None = None
    #: "none", "nf4", or None: as the artefact was fitted.
    quantisation: str | None = None
    precision: str = "bf16"
    batch_size: str = "16"
    limit: int | None = None
    num_fewshot: int | None = None
    device: str | None = None
    include_path: str | None = None
    #: "hf", or "hf-prefix"; see :mod:`calibtune.backend`.
    backend: str = "hf"
    trust_remote_code: bool = False


def evaluate(options: Evaluation) -> dict[str, Any]:
    """Run lm_eval.

    Args:
        options: What and how.

    Returns:
        lm_eval's results, with samples.

    Raises:
        UserError: An unknown task, another base, or evaluated documents that the artefact was fitted on.
        WorkFailed: Out of memory.
    """
    if options.backend == "hf-prefix":
        import calibtune.backend  # noqa: F401  (registers it)
    artefact = read_artefact(options.artifact) if options.artifact else None
    model = base_model(options.model, artefact)
    names, include_path = options.tasks, options.include_path
    check_disjoint(load_tasks(names, include_path), artefact)
    if artefact is not None and artefact.kind == "temperature":
        names, include_path = scaled(options, artefact)
    arguments = model_arguments(options, model, artefact)
    tracker = EvaluationTracker(output_path=str(options.output))
    chat = options.apply_chat_template
    if chat is None:
        chat = bool(artefact and artefact.recipe["apply_chat_template"])
    try:
        results = simple_evaluate(
            model=_quantised(options, arguments, artefact) or options.backend,
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
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    print(make_table(results))
    return {**results, "samples": samples}


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


def check_disjoint(tasks: Sequence[Any], artefact: Artefact | None) -> None:
    """Refuse to evaluate an artefact on documents that it was fitted on.

    Raises:
        UserError: With the task, the count and the first such question.
    """
    if artefact is None:
        return
    fitted = {h for hashes in artefact.documents.values() for h in hashes}
    for task in tasks:
        texts = [question_text(task, doc) for doc in task.eval_docs] if task.OUTPUT_TYPE == "multiple_choice" else []
        both = [text for text in texts if document_hash(text) in fitted]
        if both:
            raise UserError(
                f"task {task.task_name}: {len(both)} of its {len(texts)} evaluated questions were used for this fit, "
                f"the first {both[0][:60]!r}; evaluate on other questions, or fit on another split"
            )


def scaled(options: Evaluation, artefact: Artefact) -> tuple[tuple[str, ...], str]:
    """Names of the tasks that apply the artefact's temperature, and the folder of their YAMLs.

    Raises:
        UserError: A task has no such form.
    """
    assert options.artifact is not None
    assert artefact.temperature is not None
    # Written anew, since the harness may have moved since the fit.
    written = write_scaled_tasks(options.artifact, artefact.temperature["temperature"])
    for name in options.tasks:
        if name + SUFFIX not in written:
            known = ", ".join(name.removesuffix(SUFFIX) for name in written)
            raise UserError(f"--tasks {name}: a temperature is applied by our letter tasks alone: {known}")
    return tuple(name + SUFFIX for name in options.tasks), str(options.artifact)


def model_arguments(options: Evaluation, model: str, artefact: Artefact | None) -> dict[str, Any]:
    """The arguments of lm_eval's hf backend, as one would write them in ``--model_args``."""
    arguments: dict[str, Any] = {
        "pretrained": model,
        "dtype": {"bf16": "bfloat16", "fp32": "float32"}[options.precision],
        "softmax_dtype": "float32",
        "trust_remote_code": options.trust_remote_code,
    }
    if artefact is not None and artefact.kind == "model":
        arguments["pretrained"] = str(options.artifact)
    elif artefact is not None and artefact.kind == "adapter":
        arguments["peft"] = str(options.artifact)
    elif artefact is not None and artefact.recipe.get("artifact"):
        arguments["peft"] = artefact.recipe["artifact"]
    folder = arguments.get("peft")
    if artefact is not None and artefact.recipe.get("chat_template") and folder:
        # The base's tokenizer has no chat template; the artefact's copy of it has.
        arguments["tokenizer"] = folder
    return arguments


def _quantised(options: Evaluation, arguments: dict[str, Any], artefact: Artefact | None) -> Any:
    """The model itself where the base is held in NF4, which the hf backend's arguments cannot say; else None."""
    chosen = options.quantisation or (artefact.recipe["quantisation"] if artefact else "none")
    if chosen != "nf4":
        return None
    from lm_eval.api.registry import get_model

    from calibtune.modeling import load_adapter, load_base, load_tokenizer

    recipe = Recipe(
        method="temperature",
        model=arguments["pretrained"],
        quantisation="nf4",
        precision="fp32" if options.precision == "fp32" else "bf16",
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        chat_template=artefact.recipe.get("chat_template") if artefact else None,
    )
    model = load_base(recipe)
    if "peft" in arguments:
        model = load_adapter(model, Path(arguments["peft"]))
    arguments["quantisation"] = "nf4"
    return get_model(options.backend)(
        pretrained=model, tokenizer=load_tokenizer(recipe), batch_size=options.batch_size, softmax_dtype="float32"
    )
