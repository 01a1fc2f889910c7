"""List the commands that the paper's tables need, and tell which of them are done."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibtune.artifacts.manifest import MANIFEST
from calibtune.artifacts.tasks import SUFFIX
from calibtune.errors import UserError
from calibtune.files import write_json
from calibtune.reading import read_json

IN, OUT, WIN = "mc_calib_indomain", "mc_calib_arc_merged", "ultrafeedback_winrate"
TABLES = (2, 3, 4, 5)
#: Fits of tables 2 and 5, and those whose win rates table 3 has.
FITS, WINNERS = ("temperature", "label-smoothing", "cft", "rcft"), ("cft", "rcft")
#: Fits of table 4: lambda, and L_ECE alone.
LAMBDAS: dict[str, tuple[str, ...]] = {
    **{f"rcft-lambda-{value}": ("--lambda", value) for value in ("0", "0.4", "1", "1.8")},
    "rcft-l-ece-alone": ("--no-sft",),
}
#: What was run, in the output folder.
PLAN = "plan.json"


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


@dataclass(frozen=True)
class Step:
    """Describe a command: the words after ``python -m calibtune``, and the folder that it writes."""

    name: str
    words: tuple[str, ...]
    output: Path
    #: Tasks that an evaluation covers.
    tasks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shlex.join(["python", "-m", "calibtune", *self.words])

    def done(self) -> bool:
        """Return whether its output is whole; a report is cheap and always written again."""
        if self.words[0] == "fit":
            return (self.output / MANIFEST).is_file()
        if self.words[0] == "eval":
            return all(_evaluated(self.output, task) for task in self.tasks)
        return self.words[0] == "winrate" and any(self.output.glob(f"winrate_{self.words[1].replace('-', '_')}*.json"))


def _evaluated(folder: Path, task: str) -> bool:
    """Return whether a task has results and as many samples as they say; lm_eval writes the samples last."""
    for path in folder.rglob("results_*.json"):
        results = read_json(path)
        for name in {task, task + SUFFIX} & results["results"].keys():
            samples = path.with_name(f"samples_{name}_{path.stem.removeprefix('results_')}.jsonl")
            # A question has a line for each filter.
            filters = {key.partition(",")[2] for key in results["results"][name]} - {""}
            if samples.is_file():
                with samples.open("rb") as lines:
                    return sum(1 for _ in lines) == len(filters) * int(results["n-samples"][name]["effective"])
    return False


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


def check_plan(steps: Sequence[Step], output: Path) -> None:
    """Refuse an output folder whose steps were made by other commands, and note those of this plan.

    Raises:
        UserError: A step of the same name was another command.
    """
    before = read_json(output / PLAN) if (output / PLAN).is_file() else {}
    for step in steps:
        then = before.get(step.name, list(step.words))
        if then != list(step.words) and step.words[0] != "report":
            raise UserError(
                f"--output {output} holds `{step.name}` of another command: {shlex.join(then)}; give the same options, "
                "or another folder"
            )
    write_json(output / PLAN, {**before, **{step.name: list(step.words) for step in steps}})
