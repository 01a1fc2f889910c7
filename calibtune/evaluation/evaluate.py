"""Evaluate a base model or an artifact through lm_eval, into lm_eval's own result and sample files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker

from calibtune.artifacts.manifest import Artifact, base_model, read_artifact, show_base, tokenizer_folder
from calibtune.artifacts.named import named
from calibtune.data.letter_tasks import ordered, scaled
from calibtune.data.source import load_questions
from calibtune.data.tasks import Index
from calibtune.errors import UserError, WorkFailed, is_out_of_memory, reason
from calibtune.evaluation.api_letters import ApiLM, check_letter_tasks
from calibtune.evaluation.checks import (
    check_model,
    check_orders,
    check_output,
    check_prompts,
    check_shots,
    unseen,
    warn_of_low_mass,
)
from calibtune.evaluation.chosen import Chosen, choose
from calibtune.evaluation.doctor import other_prompt
from calibtune.evaluation.files import model_name, refuse_other_run, save_results
from calibtune.evaluation.harness import quiet_evaluate
from calibtune.evaluation.hf_letters import LetterLM
from calibtune.evaluation.hf_prefix import PrefixLM
from calibtune.evaluation.hub import HubTracker, check_hub_arguments
from calibtune.evaluation.measured import add_measures
from calibtune.evaluation.vllm_checks import engine_arguments
from calibtune.models.adapters import check_adapter, load_adapter
from calibtune.models.attention import attention_of_any_shape
from calibtune.models.fingerprint import check_fingerprint
from calibtune.models.loading import check_spec, found_device, load_base, not_loaded, weights_dtype
from calibtune.models.norms import fuse_norms
from calibtune.models.served import served
from calibtune.processes import is_first_process, seldom_collecting
from calibtune.recipe import flag
from calibtune.results.shards import Shard
from calibtune.spec import ModelSpec, Precision, Quantization, QuestionSpec
from harness_ext.orders import Orders

#: lm_eval's hf backend with prompts encoded whole and letters read in float32, and one that computes shared beginnings
#: once.
HF = {"hf": LetterLM, "hf-prefix": PrefixLM}
#: Questions in a forward pass where none are given.
BATCH_SIZE = "16"
#: Tokens that a forward pass then has at least on a GPU, which waits for the host with fewer.
GPU_TOKENS = 2**14
#: Options of a model that is loaded here.
LOADED = ("revision", "add_bos_token", "quantization", "precision", "device", "trust_remote_code")


@dataclass(frozen=True)
class EvaluationOptions:
    """Say what to evaluate, on what and how. None means: as the artifact was fitted, or the default."""

    tasks: tuple[str, ...]
    #: Folder for lm_eval's files.
    output: Path
    #: Hub id or folder; None: the artifact's base.
    model: str | None = None
    revision: str | None = None
    artifact: Path | None = None
    apply_chat_template: bool | None = None
    chat_template_args: dict[str, Any] | None = None
    add_bos_token: bool | None = None
    quantization: Quantization | None = None
    precision: Precision | None = None
    #: A number, or "auto"; None: ``BATCH_SIZE``, and on a GPU at least ``GPU_TOKENS`` tokens.
    batch_size: str | None = None
    limit: int | None = None
    #: Such as "3/8", the third eighth of each task's questions.
    shard: str | None = None
    num_fewshot: int | None = None
    #: In how many orders of its options each question is asked; "all": in as many as it has options.
    orders: Orders | None = None
    device: str | None = None
    include_path: str | None = None
    data: str | None = None
    columns: str = ""
    skip_bad_rows: bool = False
    as_letters: bool = False
    #: One of ``HF``, "vllm" or "api".
    backend: str = "hf-prefix"
    #: Further arguments of vLLM.
    model_args: dict[str, Any] | None = None
    #: Of a server, for "api".
    base_url: str | None = None
    trust_remote_code: bool = False
    #: Leave out questions that the artifact was fitted on, instead of refusing them.
    drop_seen: bool = False
    #: Of lm_eval's tracker, which pushes results and samples to the hub.
    hf_hub_log_args: dict[str, Any] | None = None

    @property
    def size(self) -> str:
        """Return the questions in a forward pass."""
        return BATCH_SIZE if self.batch_size is None else self.batch_size

    @property
    def questions(self) -> QuestionSpec:
        """Return where the questions come from."""
        return QuestionSpec(**{item.name: getattr(self, item.name) for item in dataclasses.fields(QuestionSpec)})

    def spec(self, artifact: Artifact | None) -> ModelSpec:
        """Return the model to load: the artifact's base as it was fitted, changed by what is given here.

        Raises:
            UserError: No model is given, or the artifact was made for another.
        """
        spec = artifact.spec if artifact is not None else ModelSpec("")
        names = ("revision", "apply_chat_template", "chat_template_args", "add_bos_token", "quantization", "precision")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(
            spec,
            name=base_model(self.model, artifact),
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            **given,
        )


@dataclass(frozen=True)
class Evaluation:
    """Hold the results of one evaluation; it can be given wherever its folder can."""

    #: Folder of lm_eval's files: ``results_*.json`` and ``samples_*.jsonl``.
    folder: Path
    #: Numbers by task and metric, such as ``results["mc_calib_arc"]["conf_ece_10"]``. Metrics of a temperature's
    #: scaled letters have ``,scaled`` behind their names. Beside lm_eval's there are those of
    #: :func:`calibtune.evaluation.measured.add_measures`.
    results: dict[str, dict[str, float]]
    #: Questions by task.
    questions: dict[str, int]
    #: What :func:`evaluate` was asked.
    options: EvaluationOptions = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.folder)


@seldom_collecting()
@attention_of_any_shape()
def evaluate(options: EvaluationOptions) -> Evaluation | None:
    """Run lm_eval.

    Args:
        options: What and how.

    Returns:
        The results; None in all processes but the first.

    Raises:
        UserError: Options out of range, an output that cannot be written, a model that cannot be loaded or asked for
            letters, an unknown task, another base, or evaluated documents that the artifact was fitted on.
        WorkFailed: Out of memory, or the results were not written.
    """
    check_options(options)
    check_output(options.output)
    if options.backend == "api":
        return _evaluate_served(options)
    model, folder, revision = named(options.model, options.artifact, options.revision)
    options = dataclasses.replace(options, model=model, artifact=folder, revision=revision)
    artifact = read_artifact(folder) if folder else None
    spec = options.spec(artifact)
    arguments = model_arguments(options, spec, artifact)
    if options.backend == "vllm":
        arguments = engine_arguments(arguments, options.model_args or {}, spec.quantization == "nf4")
    setup = setup_of(options, spec, arguments, artifact)
    refuse_other_run(options.output, setup)
    if artifact is not None and options.model is None and is_first_process():
        show_base(artifact)
    tokenizer = check_model(spec, arguments)
    if artifact is not None:
        check_fingerprint(spec, artifact.fingerprint, str(options.artifact))
    if "peft" in arguments:
        check_adapter(Path(arguments["peft"]))
    index, tasks, asked = _questions(options, artifact)
    check_prompts(tasks, spec, tokenizer, artifact)
    chosen = _choose(options, artifact, index, asked)
    loaded = dict(arguments)
    if options.backend in HF:
        # Read once: it takes as long as the prompts of 2,000 questions.
        loaded["tokenizer"] = tokenizer
        if spec.quantization == "nf4":
            arguments["quantization"] = "nf4"
    evaluation = _run(options, lambda: _filling(options, loaded, spec), arguments, setup, index, chosen)
    if evaluation is not None:
        warn_of_low_mass(evaluation.results, evaluation.questions, other_prompt(tokenizer, spec))
    return evaluation


def _questions(
    options: EvaluationOptions, artifact: Artifact | None
) -> tuple[Index, list[Any], dict[str, list[int]] | None]:
    """Return the harness's index, the tasks and the numbers of the documents to evaluate; see :func:`unseen`."""
    index, tasks = load_questions(options.questions)
    check_shots(tasks, options.num_fewshot)
    return index, tasks, unseen(tasks, artifact, options.drop_seen, options.limit)


def _choose(
    options: EvaluationOptions, artifact: Artifact | None, index: Index, asked: dict[str, list[int]] | None
) -> dict[str, Chosen] | None:
    """Return the questions to ask; have the tasks ask in their orders and apply the artifact's temperature."""
    for change in _changes(options, artifact):
        names = index.change(options.questions.names, change)
        asked = asked and {names[name]: numbers for name, numbers in asked.items()}
    loaded = index.load(list(options.questions.names))["tasks"]
    check_orders(list(loaded.values()), artifact)
    return choose(loaded, asked, options.limit, Shard.parse(options.shard) if options.shard else None)


def _changes(options: EvaluationOptions, artifact: Artifact | None) -> list[Callable[[Any], Any]]:
    """Return what is made of each task: one that asks in several orders, one that applies a temperature."""
    orders = options.orders or (artifact.orders if artifact is not None and artifact.orders != 1 else None)
    changes: list[Callable[[Any], Any]] = []
    if orders is not None:
        changes.append(lambda task: ordered(task, orders))
    if artifact is not None and artifact.temperature is not None:
        temperature = artifact.temperature["temperature"]
        changes.append(lambda task: scaled(task, temperature))
    return changes


def _evaluate_served(options: EvaluationOptions) -> Evaluation | None:
    """Evaluate a model behind an OpenAI-compatible server, as :func:`evaluate` does one whose weights are at hand."""
    if not is_first_process():
        return None  # each question is paid for once
    artifact = read_artifact(options.artifact) if options.artifact else None
    if artifact is not None and artifact.temperature is None:
        raise UserError(
            f"--artifact {options.artifact} is weights, and --backend api evaluates those that the server has; serve "
            "it there, and give the name that it has there as --model"
        )
    spec = options.spec(artifact)
    arguments: dict[str, Any] = {"model": spec.name, "base_url": options.base_url}
    if spec.chat_template_args:
        arguments["chat_template_args"] = spec.chat_template_args
    setup = setup_of(options, spec, arguments, artifact)
    refuse_other_run(options.output, setup)
    index, tasks, asked = _questions(options, artifact)
    check_letter_tasks(tasks)
    chosen = _choose(options, artifact, index, asked)
    with served(options.base_url, spec, int(options.size), options.output) as server:
        evaluation = _run(options, lambda: ApiLM(server), arguments, setup, index, chosen)
    if evaluation is not None:
        other = "without" if spec.apply_chat_template else "with"
        warn_of_low_mass(evaluation.results, evaluation.questions, f"{other} --apply-chat-template")
    return evaluation


def _run(
    options: EvaluationOptions,
    load: Callable[[], Any],
    arguments: dict[str, Any],
    setup: dict[str, Any],
    index: Index,
    chosen: dict[str, Chosen] | None,
) -> Evaluation | None:
    """Run lm_eval on a model, which is loaded first, and write its files."""
    tracker = _tracker(options, arguments)
    try:
        results = quiet_evaluate(
            model=load(),
            model_args=arguments,
            tasks=list(options.questions.names),
            num_fewshot=options.num_fewshot,
            batch_size=options.size,
            device=options.device or found_device(),
            # The harness takes one of these.
            limit=options.limit if chosen is None else None,
            samples=chosen,
            apply_chat_template=setup["apply_chat_template"],
            log_samples=True,
            evaluation_tracker=tracker,
            task_manager=index,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise WorkFailed(f"out of memory with --batch-size {options.size}; give a smaller one, or auto") from error
    if results is None:
        # lm_eval gives results on the first process alone.
        return None
    # The harness was given the loaded model; its files name the backend, as where it loads one itself.
    results["config"]["model"] = tracker.general_config_tracker.model_source = options.backend
    results["config"]["calibtune"] = setup
    folder = save_results(tracker, results, results.pop("samples"))
    if isinstance(tracker, HubTracker):
        tracker.finish()
    questions = {task: count["effective"] for task, count in results["n-samples"].items()}
    numbers = {task: _numbers(found) for task, found in results["results"].items()}
    add_measures(folder, numbers)
    return Evaluation(folder, numbers, questions, options)


def _tracker(options: EvaluationOptions, arguments: Mapping[str, Any]) -> EvaluationTracker:
    """Return lm_eval's writer of files; on the first process, which alone writes, one that pushes where asked."""
    if options.hf_hub_log_args is None or not is_first_process():
        return EvaluationTracker(output_path=str(options.output))
    return HubTracker(options.output, options.hf_hub_log_args, model_name(arguments))


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """Return a task's numbers under the metrics' own names; the filter stays in the name unless it is "none"."""
    numbers = {name.removesuffix(",none"): value for name, value in found.items()}
    about = ("sample_len", "alias", "name", "sample_count")
    return {n: v for n, v in numbers.items() if n not in about and "_stderr" not in n and isinstance(v, (int, float))}


def check_options(options: EvaluationOptions) -> None:
    """Refuse numbers that lm_eval takes for others, or stumbles over once the model is loaded.

    Raises:
        UserError: With the flag and its value.
    """
    if not options.questions.names:
        raise UserError("--tasks names no task; give one or more, separated by commas, or --data")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}; give at least 1, or leave it out for all questions")
    if options.shard is not None:
        Shard.parse(options.shard)
    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise UserError(f"--num-fewshot is {options.num_fewshot}; give 0 or more")
    if not re.fullmatch(r"[1-9]\d*|auto(:[1-9]\d*)?", options.size):
        raise UserError(f"--batch-size is {options.batch_size!r}; give a number from 1 up, or auto")
    if options.model_args and options.backend != "vllm":
        raise UserError(f"--model-args is for --backend vllm, and the backend is {options.backend}; leave it out")
    if options.device and options.backend == "vllm":
        raise UserError("--device is not for --backend vllm; name its GPUs in the variable CUDA_VISIBLE_DEVICES")
    check_hub_arguments(options.hf_hub_log_args)
    if options.backend == "api":
        _check_served_options(options)
    elif options.base_url is not None:
        raise UserError(f"--base-url is for --backend api, and the backend is {options.backend}; leave it out")


def _check_served_options(options: EvaluationOptions) -> None:
    """Refuse what only a model whose weights are loaded here can be told."""
    for item in dataclasses.fields(options):
        if item.name in LOADED and getattr(options, item.name) != item.default:
            raise UserError(
                f"{flag(item.name)} is for a model that is loaded here; --backend api asks one that a server has"
            )
    if not options.size.isdigit():
        raise UserError(f"--batch-size is {options.batch_size!r}; --backend api takes the number of requests at a time")


def setup_of(
    options: EvaluationOptions, spec: ModelSpec, arguments: Mapping[str, Any], artifact: Artifact | None
) -> dict[str, Any]:
    """Return what tells this evaluation from another one of the same tasks, as JSON gives it back."""
    return {
        "model_args": dict(arguments),
        "quantization": spec.quantization,
        "apply_chat_template": spec.apply_chat_template,
        "temperature": artifact.temperature["temperature"] if artifact and artifact.temperature else None,
        "limit": options.limit,
        "shard": options.shard,
        "num_fewshot": options.num_fewshot,
        # None as in files of versions that knew no orders.
        "orders": options.orders if options.orders != 1 else None,
        "drop_seen": options.drop_seen,
        "data": options.data,
    }


def model_arguments(options: EvaluationOptions, spec: ModelSpec, artifact: Artifact | None) -> dict[str, Any]:
    """Return the arguments of lm_eval's hf backend, as one would write them in ``--model_args``.

    Raises:
        UserError: The spec's device cannot be used, or bitsandbytes is missing.
    """
    check_spec(spec)
    arguments: dict[str, Any] = {
        "pretrained": spec.name,
        "dtype": str(weights_dtype(spec)).removeprefix("torch."),
        "softmax_dtype": "float32",
        "trust_remote_code": spec.trust_remote_code,
    }
    if spec.revision is not None:
        arguments["revision"] = spec.revision
    if spec.chat_template_args:
        arguments["chat_template_args"] = spec.chat_template_args
    if spec.add_bos_token is not None:
        arguments["add_bos_token"] = spec.add_bos_token
    if artifact is not None and artifact.kind == "model":
        arguments["pretrained"] = str(options.artifact)
        arguments.pop("revision", None)
    elif artifact is not None and artifact.kind == "adapter":
        arguments["peft"] = str(options.artifact)
    elif artifact is not None and artifact.adapter:
        arguments["peft"] = artifact.adapter
    if folder := tokenizer_folder(artifact):
        arguments["tokenizer"] = str(folder)
    return arguments


def _filling(options: EvaluationOptions, arguments: dict[str, Any], spec: ModelSpec) -> Any:
    """Load the harness's model; on a GPU with fused norms, and full batches where nobody said how large they are."""
    model = _load(options, arguments, spec)
    if isinstance(model, LetterLM) and model.device.type == "cuda":
        fuse_norms(model.model)
        if options.batch_size is None:
            model.least_tokens = GPU_TOKENS
    return model


def _load(options: EvaluationOptions, arguments: dict[str, Any], spec: ModelSpec) -> Any:
    """Load the harness's model.

    Args:
        options: What to evaluate, and how.
        arguments: Of lm_eval's hf backend, with a loaded tokenizer; or of vLLM.
        spec: The base model.

    Raises:
        UserError: It cannot be loaded, or the adapter was made for another.
    """
    if options.backend == "vllm":
        return _start_vllm(arguments, spec)
    backend = HF[options.backend]
    if spec.quantization == "nf4":
        # The hf backend's arguments cannot say so.
        model = load_base(spec)
        if "peft" in arguments:
            model = load_adapter(model, Path(arguments["peft"]))
        given = {n: arguments[n] for n in ("tokenizer", "chat_template_args", "add_bos_token") if n in arguments}
        return backend(pretrained=model, batch_size=options.size, softmax_dtype="float32", **given)
    device = options.device or found_device()
    more = {"batch_size": options.size, "device": device, "use_safetensors": True}
    try:
        return backend.create_from_arg_obj(arguments, more)
    # On damaged files, transformers and PEFT raise whatever comes.
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        if "peft" in arguments and not isinstance(error, OSError):
            raise UserError(
                f"the adapter {arguments['peft']} cannot be put on {spec.name}; give the base that it was fitted "
                f"on ({reason(error)})"
            ) from error
        raise not_loaded(spec.name, error) from error


def _start_vllm(arguments: dict[str, Any], spec: ModelSpec) -> Any:
    """Start vLLM, which makes its own batches.

    Raises:
        WorkFailed: It does not start.
    """
    # vLLM is loaded where it is asked for alone.
    from calibtune.evaluation.vllm_letters import VllmLM

    try:
        return VllmLM.create_from_arg_obj(arguments, {"batch_size": "auto"})
    # Its processes raise whatever comes, and say why on standard error.
    except Exception as error:
        raise WorkFailed(
            f"vLLM did not start with {spec.name} ({reason(error)}); see its lines above, and give it arguments such "
            "as --model-args max_model_len=4096,gpu_memory_utilization=0.8"
        ) from error
