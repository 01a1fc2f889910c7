"""Make the commands that measure a model and fit what may mend it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibtune.errors import UserError
from calibtune.models.loading import load_config
from calibtune.recipe import flag
from calibtune.spec import ModelSpec, QuestionSpec
from calibtune.steps import Step
from harness_ext.orders import Orders

IN, OUT, WIN = "mc_calib_indomain", "mc_calib_arc_merged", "ultrafeedback_winrate"


@dataclass(frozen=True)
class Options:
    """Say what to mend, and on which questions."""

    model: ModelSpec
    output: Path
    #: Questions to fit on and to measure in domain.
    questions: QuestionSpec = field(default_factory=lambda: QuestionSpec((IN,)))
    #: Tasks to measure out of domain.
    out_tasks: tuple[str, ...] = (OUT,)
    #: Measure on the first so many questions of each task.
    limit: int | None = None
    #: Minutes that adapters and what follows may take; as many are trained as there is time for.
    budget: float = 60.0
    #: In how many orders of its options a question may be asked.
    orders: Orders = 1


def check(options: Options) -> None:
    """Check what can be known before anything runs.

    Raises:
        UserError: A number is out of range, or the output is a file.
        UserError: The model's configuration cannot be read.
    """
    if not 0 <= options.budget < math.inf:
        raise UserError(f"--budget is {options.budget:g}; give minutes, 0 or more")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}; give 1 or more")
    if options.output.is_file():
        raise UserError(f"--output {options.output} is a file; give a folder")
    load_config(options.model)


def doctor(options: Options) -> Step:
    """Return the check of the model's letters."""
    return Step("doctor", ("doctor", *_model(options, quantized=False), *_questions(options.questions)), options.output)


def fit(options: Options, name: str, *flags: str) -> Step:
    """Return the fit of a candidate, which lies in a folder of its name."""
    folder = options.output / name
    words = ("fit", *flags, *_model(options), *_questions(options.questions), "--output", str(folder), "--resume")
    return Step(f"fit {name}", words, folder)


def adapter(options: Options, count: int) -> Step:
    """Return the fit of the mean of so many adapters, with a temperature on top."""
    return fit(options, "auto", "--method", "auto", "--adapters", str(count))


def orders(options: Options, below: Path | None, *flags: str) -> Step:
    """Return the fit of a temperature at the orders of the options, on the base or on an adapter."""
    given = () if below is None else ("--artifact", str(below))
    name = "orders" if below is None else "adapter-orders"
    return fit(options, name, "--method", "temperature", "--orders", str(options.orders), *given, *flags)


def evaluation(options: Options, name: str, artifact: Path | None = None) -> Step:
    """Return the evaluation of the base, or of an artifact, in and out of domain."""
    spec = dataclasses.replace(options.questions, tasks=(*options.questions.tasks, *options.out_tasks))
    limit = () if options.limit is None else ("--limit", str(options.limit))
    asked = ("--orders", str(options.orders)) if name.endswith("orders") else ()
    words = (*_questions(spec), *limit, *asked)
    return _evaluation(options, f"eval {name}", f"{name}-eval", words, spec.names, artifact)


def pairs(options: Options, name: str, artifact: Path | None = None) -> Step:
    """Return the evaluation of the base, or of an artifact, on preference pairs."""
    return _evaluation(options, f"win rate of {name}", f"{name}-pairs", ("--tasks", WIN), (WIN,), artifact)


def report(options: Options, evaluated: Sequence[Path]) -> Step:
    """Return the report of the base's evaluation and of what was chosen."""
    folder = options.output / "report"
    return Step("report", ("report", *map(str, evaluated), "--output", str(folder), "--overwrite"), folder)


def _evaluation(
    options: Options, title: str, name: str, words: tuple[str, ...], tasks: tuple[str, ...], artifact: Path | None
) -> Step:
    given = () if artifact is None else ("--artifact", str(artifact))
    folder = options.output / name
    return Step(title, ("eval", *_model(options), *given, *words, "--output", str(folder)), folder, tasks)


def _model(options: Options, quantized: bool = True) -> tuple[str, ...]:
    spec = options.model
    words = ["--model", spec.name, *(["--apply-chat-template"] if spec.apply_chat_template else [])]
    for name in ("revision", "device"):
        words += [flag(name), value] if (value := getattr(spec, name)) else []
    if spec.chat_template_args:
        words += ["--chat-template-args", json.dumps(spec.chat_template_args)]
    if spec.add_bos_token is not None:
        words += ["--add-bos-token" if spec.add_bos_token else "--no-add-bos-token"]
    words += ["--trust-remote-code"] if spec.trust_remote_code else []
    return (*words, *(["--quantization", spec.quantization] if quantized and spec.quantization != "none" else []))


def _questions(spec: QuestionSpec) -> tuple[str, ...]:
    words = ["--tasks", ",".join(spec.tasks)] if spec.tasks else []
    for name in ("include_path", "data", "columns"):
        words += [flag(name), value] if (value := getattr(spec, name)) else []
    return (*words, *(flag(name) for name in ("skip_bad_rows", "as_letters") if getattr(spec, name)))
