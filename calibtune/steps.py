"""Run commands that make up a longer work, each in a process of its own, and tell which of them are done."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibtune.artifacts.manifest import MANIFEST
from calibtune.artifacts.tasks import SUFFIX
from calibtune.errors import UserError, WorkFailed
from calibtune.files import write_json
from calibtune.reading import read_json
from harness_ext.orders import SUFFIX as ORDERS

#: What was run, in the output folder.
PLAN = "plan.json"


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
    """Return whether a task, or each task of a group, has results and as many samples as they say."""
    for path in folder.rglob("results_*.json"):
        results = read_json(path)
        names = {task + orders + scaled for orders in ("", ORDERS) for scaled in ("", SUFFIX)}
        for name in names & results["results"].keys():
            if all(_whole(path, results, leaf) for leaf in _tasks(results, name)):
                return True
    return False


def _tasks(results: Mapping[str, Any], name: str) -> list[str]:
    """Return the tasks of a group, of which lm_eval writes no samples, or the task itself."""
    inner = results.get("group_subtasks", {}).get(name)
    return [task for each in inner for task in _tasks(results, each)] if inner else [name]


def _whole(path: Path, results: Mapping[str, Any], name: str) -> bool:
    """Return whether all samples of a task are there; lm_eval writes them last."""
    samples = path.with_name(f"samples_{name}_{path.stem.removeprefix('results_')}.jsonl")
    # A question has a line for each filter.
    filters = {key.partition(",")[2] for key in results["results"][name]} - {""}
    if not samples.is_file():
        return False
    with samples.open("rb") as lines:
        return sum(1 for _ in lines) == len(filters) * int(results["n-samples"][name]["effective"])


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


def run_step(step: Step) -> None:
    """Run a command in a process of its own, which gives all memory back."""
    code = subprocess.run([sys.executable, "-m", "calibtune", *step.words]).returncode
    if code in (130, 143):
        raise KeyboardInterrupt
    if code:
        raise WorkFailed(f"`{step}` ended with exit code {code}; mend what it says and run the same command again")
