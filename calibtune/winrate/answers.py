"""Answers to open questions: generated in lm_eval (``hf`` model, ``generate_until`` task), batched, resumable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibtune.errors import UserError, WorkFailed, is_out_of_memory
from calibtune.files import read_json, write_json
from calibtune.winrate.journal import key_of

TASK = "calibtune_answers"


@dataclass(frozen=True)
class Model:
    """What answers: a base model, with or without an adapter."""

    #: Hub id or folder.
    base: str
    #: PEFT folder, or None.
    adapter: Path | None = None
    #: Further ``model_args`` of lm_eval's ``hf`` model, such as ``dtype``.
    extra: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no adapter.

        Raises:
            UserError: The folder holds no adapter.
        """
        if self.adapter is not None and not (self.adapter / "adapter_config.json").is_file():
            raise UserError(
                f"--artifact {self.adapter} holds no adapter_config.json; give an adapter's folder (a temperature does "
                "not change greedy answers, so leave it out)"
            )

    @property
    def name(self) -> str:
        """A short name: the last part of the base's name, and of the adapter's after a plus."""
        parts = [self.base, *([str(self.adapter.resolve())] if self.adapter else [])]
        return "+".join(Path(part).name or part for part in parts)

    def model_args(self) -> dict[str, Any]:
        """The harness's ``model_args``."""
        peft = {"peft": str(self.adapter)} if self.adapter else {}
        return {"pretrained": self.base, **peft, **dict(self.extra)}

    def fingerprint(self) -> str:
        """Changes when the model does: a folder's files with size and time, or the hub id, and the arguments."""
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
    """How answers are generated; greedily, so that they can be had again."""

    max_new_tokens: int = 2048
    batch_size: int | str = 1
    device: str | None = None


@dataclass(frozen=True)
class Answers:
    """A model's answers, in the questions' order."""

    outputs: tuple[str, ...]
    #: Questions that lost their beginning to fit the context beside ``max_new_tokens``.
    cut: int
    #: Whether the model's chat template was used; a model without one answers the bare question.
    chat_template: bool


def generate(model: Model, questions: Sequence[str], folder: Path, settings: Settings) -> Answers:
    """Answer every question once.

    Args:
        model: What answers.
        questions: User messages.
        folder: Keeps the answers: one by one in lm_eval's request cache, whole when done, so that the same call resumes
            where it was killed, and costs nothing when it had been done.
        settings: Length, batch and device.

    Returns:
        The answers; an answer may be empty.

    Raises:
        UserError: The model cannot be loaded, or its context has no room for an answer of that length.
        WorkFailed: The device's memory is too small.
    """
    key = key_of([model.fingerprint(), list(questions), settings.max_new_tokens])
    done = folder / f"{key[:16]}.json"
    if done.is_file():
        kept = read_json(done)
        return Answers(tuple(kept["outputs"]), kept["cut"], kept["chat_template"])
    lm = _load(model, settings)
    room = lm.max_length - settings.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens {settings.max_new_tokens} leaves no room for a question in the {lm.max_length} tokens "
            f"of {model.base}; give less"
        )
    template = bool(lm.tokenizer.chat_template)
    # The cache knows requests, not models: its name has to.
    samples = _evaluate(lm, questions, settings, template, folder / f"requests-{model.fingerprint()[:16]}")
    cut = sum(len(lm.tok_encode(sample["arguments"][0][0])) > room for sample in samples)
    answers = Answers(tuple(sample["resps"][0][0] for sample in samples), cut, template)
    write_json(done, {**asdict(answers), "model": model.name, "max_new_tokens": settings.max_new_tokens})
    return answers


def _load(model: Model, settings: Settings) -> Any:
    from lm_eval.api.registry import get_model

    from calibtune.models.loading import found_device

    options = {"batch_size": settings.batch_size, "device": settings.device or found_device()}
    try:
        return get_model("hf").create_from_arg_obj(model.model_args(), options)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"--model {model.base} cannot be loaded ({said[0][:200]}); give a folder or a hub id"
        ) from error


def _evaluate(
    lm: Any, questions: Sequence[str], settings: Settings, template: bool, cache: Path
) -> list[dict[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = simple_evaluate(
            model=lm,
            tasks=[ConfigurableTask(config=_task(questions, settings.max_new_tokens))],
            # The full index takes seconds, and this task is in none.
            task_manager=TaskManager(include_defaults=False),
            use_cache=str(cache),
            apply_chat_template=template,
            log_samples=True,
            bootstrap_iters=0,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise WorkFailed(
            f"the device's memory is too small for --batch-size {settings.batch_size}; run again with less, the "
            "answers so far are kept"
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
        # Without `until` the harness would stop at a blank line.
        "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False},
        "process_results": lambda doc, results: {"characters": float(len(results[0]))},
        "metric_list": [{"metric": "characters", "aggregation": _mean, "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
