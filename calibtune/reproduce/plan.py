"""List the commands that the paper's tables need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibtune.steps import Step

IN, OUT, WIN = "mc_calib_indomain", "mc_calib_arc_merged", "ultrafeedback_winrate"
TABLES = (2, 3, 4, 5)
#: Fits of tables 2 and 5, and those whose win rates table 3 has.
FITS, WINNERS = ("temperature", "label-smoothing", "cft", "rcft"), ("cft", "rcft")
#: Fits of table 4: lambda, and L_ECE alone.
LAMBDAS: dict[str, tuple[str, ...]] = {
    **{f"rcft-lambda-{value}": ("--lambda", value) for value in ("0", "0.4", "1", "1.8")},
    "rcft-l-ece-alone": ("--no-sft",),
}


@dataclass(frozen=True)
class Options:
    """Say what to reproduce."""

    model: str
    output: Path
    tables: tuple[int, ...] = TABLES
    config: Literal["default", "paper"] = "default"
    seeds: tuple[int, ...] = (0,)
    learning_rate: float | None = None
    #: Whether the model's tokenizer has a chat template.
    chat: bool = True
    #: Flags of `winrate alpaca-eval`: judge and instructions; none: without AlpacaEval.
    alpaca: tuple[str, ...] = ()
    #: Checkout of arena-hard-auto with recorded judgments; None: without Arena-Hard.
    arena: Path | None = None


def plan(options: Options) -> list[Step]:
    """Return the commands in an order in which they can run."""
    tables = set(options.tables)
    variants: dict[str, tuple[str, ...]] = {}
    if tables & {2, 5}:
        variants |= dict.fromkeys(FITS, ())
    if tables & {3, 4}:
        variants |= dict.fromkeys(WINNERS if 3 in tables else ("rcft",), ())
    if 4 in tables:
        # The paper's recipe has lambda 1, so that its RCFT is that column.
        variants |= {n: flags for n, flags in LAMBDAS.items() if (options.config, n) != ("paper", "rcft-lambda-1")}
    letters, steps = bool(tables & {2, 4, 5}), []
    evaluations = {"base": _evaluations(options, "base", None, letters)}
    steps += evaluations["base"]
    for name, flags in variants.items():
        for seed in options.seeds:
            fit = _fit(options, name, flags, seed)
            evaluations[f"{name}, seed {seed}"] = _evaluations(options, name, fit, letters)
            steps += [fit, *evaluations[f"{name}, seed {seed}"]]
    folders = {label: found[0].output for label, found in evaluations.items()}
    return [*steps, _report(options, folders)]


def _fit(options: Options, name: str, flags: Sequence[str], seed: int) -> Step:
    method = "rcft" if name.startswith("rcft") else name
    recipe = ["--config", f"paper/{method}"] if options.config == "paper" else ["--method", method]
    rate = [] if method == "temperature" or options.learning_rate is None else [f"{options.learning_rate:g}"]
    folder = options.output / "fits" / f"{name}-{seed}"
    words = [
        *("fit", *recipe, "--model", options.model, "--tasks", IN, *_chat(options), "--seed", str(seed)),
        *flags,
        *(["--learning-rate", *rate] if rate else []),
        *("--output", str(folder), "--resume"),
    ]
    return Step(f"fit {name}, seed {seed}", tuple(words), folder)


def _chat(options: Options) -> list[str]:
    return ["--apply-chat-template"] * options.chat


def _evaluations(options: Options, name: str, fit: Step | None, letters: bool) -> list[Step]:
    """Return the evaluations of a model: letters in and out of domain, and win rates where its method has them."""
    folder = options.output / "evaluations" / (fit.output.name if fit else name)
    artifact = ["--artifact", str(fit.output)] if fit else []
    held = ["--quantization", "nf4", "--precision", "bf16"] if options.config == "paper" and not fit else []
    wanted = ((IN, OUT),) if letters else ()
    if 3 in options.tables and name in ("base", *WINNERS):
        wanted = (*wanted, (WIN,))
    steps = []
    for tasks in wanted:
        words = ["eval", "--model", options.model, *artifact, *held, "--tasks", ",".join(tasks)]
        words += [*_chat(options), "--output", str(folder)]
        steps.append(Step(f"eval {folder.name} on {', '.join(tasks)}", tuple(words), folder, tasks))
    if 3 in options.tables and name in ("base", *WINNERS):
        given = ["--model", options.model, *artifact, "--output", str(folder)]
        if options.alpaca:
            words = ["winrate", "alpaca-eval", *options.alpaca, "--reference", options.model, *given]
            steps += [Step(f"alpaca-eval {folder.name}", tuple(words), folder)] if fit else []
        if options.arena:
            words = ["winrate", "arena-hard", "--bench", str(options.arena), "--name", folder.name, *given]
            steps.append(Step(f"arena-hard {folder.name}", tuple(words), folder))
    return steps


def _report(options: Options, folders: dict[str, Path]) -> Step:
    words = ["report", *map(str, folders.values()), "--base", str(folders["base"])]
    for label in folders:
        words += ["--label", label]
    target = options.output / "report"
    return Step("report", (*words, "--output", str(target), "--overwrite"), target)
