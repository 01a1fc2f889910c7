"""Generate answers to open questions with lm_eval, in batches and resumable."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibtune.artifacts.manifest import read_artifact, tokenizer_folder
from calibtune.endpoints.journal import Journal, key_of
from calibtune.errors import UserError, WorkFailed, is_out_of_memory
from calibtune.files import write_json
from calibtune.reading import MOST_LISTED, check_folder, read_json

TASK = "calibtune_answers"


@dataclass(frozen=True)
class Model:
    """Name the model that answers: a base model, with or without an adapter."""

    #: Hub id or folder.
    base: str
    #: Folder of a PEFT adapter, or None.
    adapter: Path | None = None
    #: Additional ``model_args`` of lm_eval's ``hf`` model, such as ``dtype``.
    extra: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Check that the adapter's folder has an adapter.

        Raises:
            UserError: The folder has no adapter, or one that is not loaded; see
                :func:`calibtune.models.adapters.check_adapter`.
        """
        from calibtune.models.adapters import check_adapter

        if self.adapter is not None and not (self.adapter / "adapter_config.json").is_file():
            raise UserError(
                f"--artifact {self.adapter} has no adapter_config.json; give the folder of an adapter, or leave it out "
                "(a temperature does not change greedy answers)"
            )
        if self.adapter is not None:
            check_adapter(self.adapter)

    @property
    def name(self) -> str:
        """Return the last part of the base model's name, and of the adapter's if there is one."""
        parts = [self.base, *([str(self.adapter.resolve())] if self.adapter else [])]
        return "+".join(Path(part).name or part for part in parts)

    def model_args(self) -> dict[str, Any]:
        """Return lm_eval's ``model_args``."""
        given = {"peft": str(self.adapter)} if self.adapter else {}
        if self.adapter and (folder := tokenizer_folder(read_artifact(self.adapter))):
            given["tokenizer"] = str(folder)
        return {"pretrained": self.base, **given, **dict(self.extra)}

    def fingerprint(self) -> str:
        """Return a hash of model arguments and of names, sizes and times of local files."""
        folders = [Path(self.base), *([self.adapter] if self.adapter else [])]
        files = [
            (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
            for folder in folders
            if folder.is_dir()
            for file in sorted(folder.iterdir())
            if file.suffix in (".safetensors", ".bin", ".json")
        ]
        return key_of([self.base, str(self.adapter), [list(pair) for pair in self.extra], files])


@dataclass(frozen=True)
class Settings:
    """Configure the generation of answers, which is greedy and thus reproducible."""

    max_new_tokens: int = 2048
    batch_size: int | str = 1
    device: str | None = None


@dataclass(frozen=True)
class Answers:
    """Hold a model's answers in the questions' order."""

    outputs: tuple[str, ...]
    #: Number of prompts cut at the beginning to leave ``max_new_tokens`` of the context.
    cut: int
    #: Whether the chat template was used; a model without one gets the question alone.
    chat_template: bool


def generate(model: Model, questions: Sequence[str], folder: Path, settings: Settings) -> Answers:
    """Answer every question once.

    Each answer is stored when it comes, and all of them in a file at the end. The same call
    therefore resumes if it was interrupted, and reads the file if it was finished.

    Args:
        model: The model.
        questions: The user messages.
        folder: Folder of the stored answers.
        settings: Length, batch size and device.

    Returns:
        The answers, of which some may be empty.

    Raises:
        UserError: The model cannot be loaded, or its context is too short for the answer length.
        WorkFailed: The device is out of memory.
    """
    key = key_of([model.fingerprint(), list(questions), settings.max_new_tokens])
    done = folder / f"{key[:16]}.json"
    if done.is_file():
        return read_json(done, Answers, "remove it and run again", MOST_LISTED)
    lm = _load(model, settings)
    room = lm.max_length - settings.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {settings.max_new_tokens} leaves no room for a question in the {lm.max_length} tokens "
            f"of context of {model.base}; give a smaller number"
        )
    template = bool(lm.tokenizer.chat_template)
    # A line does not say which model answered, so the file's name must identify the model.
    with Journal(folder / f"answers-{model.fingerprint()[:16]}.jsonl", str) as journal:
        keep_answers(lm, journal)
        samples = _evaluate(lm, questions, settings, template)
    cut = sum(len(lm.tok_encode(sample["arguments"][0][0])) > room for sample in samples)
    answers = Answers(tuple(sample["resps"][0][0] for sample in samples), cut, template)
    write_json(done, {**asdict(answers), "model": model.name, "max_new_tokens": settings.max_new_tokens})
    return answers


def _load(model: Model, settings: Settings) -> Any:
    from lm_eval.api.registry import get_model

    from calibtune.data.templates import limited
    from calibtune.models.loading import found_device, not_loaded

    if os.path.isdir(model.base):
        check_folder(Path(model.base), "copy the model again")
    device = settings.device or found_device()
    options = {"batch_size": settings.batch_size, "device": device, "use_safetensors": True}
    try:
        lm: Any = get_model("hf").create_from_arg_obj(model.model_args(), options)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise not_loaded(model.base, error, "--model-args trust_remote_code=True") from error
    lm.apply_chat_template = limited(lm.apply_chat_template)
    # A padding token that was added to the tokenizer alone has no embedding.
    if lm.tokenizer.pad_token_id >= lm.model.get_input_embeddings().num_embeddings:
        lm.tokenizer.pad_token_id = lm.eot_token_id
    return lm


def keep_answers(lm: Any, journal: Journal) -> None:
    """Make a model store each answer when it comes, and answer from the journal what it holds.

    lm_eval's own cache holds pickles, which run code when they are read.
    """
    ask = lm.generate_until

    def generate_until(requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        keys = [key_of(list(request.args)) for request in requests]
        left = [each for each, key in zip(requests, keys, strict=True) if journal.get(key) is None]
        if left:
            ask(left, disable_tqdm=disable_tqdm)
        return [journal.get(key) for key in keys]

    lm.generate_until = generate_until
    lm.set_cache_hook(_Hook(journal))


class _Hook:
    """Take what lm_eval's models give their cache: each answer when it comes."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def add_partial(self, _: str, arguments: Sequence[Any], answer: str) -> None:
        self.journal.put(key_of(list(arguments)), answer)


def _evaluate(lm: Any, questions: Sequence[str], settings: Settings, template: bool) -> list[dict[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    try:
        found = simple_evaluate(
            model=lm,
            tasks=[ConfigurableTask(config=_task(questions, settings.max_new_tokens))],
            # Building the index of all tasks takes seconds and is not needed.
            task_manager=TaskManager(include_defaults=False),
            apply_chat_template=template,
            log_samples=True,
            bootstrap_iters=0,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise WorkFailed(
            f"the device's memory is too small for --batch-size {settings.batch_size}; run again with a smaller one, "
            "the answers so far are kept"
        ) from error
    if found is None:
        raise UserError("calibtune winrate runs as one process; start it without torchrun or accelerate launch")
    return sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])


def _task(questions: Sequence[str], max_new_tokens: int) -> dict[str, Any]:
    import datasets

    return {
        "task": TASK,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_dict({"question": list(questions)})},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "",
        # By default the harness would stop at a blank line.
        "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False},
        "process_results": lambda doc, results: {"characters": float(len(results[0]))},
        "metric_list": [{"metric": "characters", "aggregation": _mean, "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
