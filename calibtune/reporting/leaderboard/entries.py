"""Read what each model answered: the lines of the board."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibtune.errors import UserError
from calibtune.reporting.build import runs_of
from calibtune.reporting.labels import set_labels
from calibtune.reporting.numbers import methods_of
from calibtune.reporting.questions import Questions, pool_groups, read_questions, same_tasks
from calibtune.reporting.runs import Run, merge_runs
from calibtune.results.pairs import Key
from harness_ext.binning import FloatArray, IntArray


@dataclass(frozen=True)
class Answers:
    """Hold what a model answered to the questions of a task."""

    #: Raw log-likelihoods of the letters, shape (N, K), NaN where the letter is absent.
    loglikelihoods: FloatArray
    #: See :func:`calibtune.results.pairs.question_keys`.
    keys: tuple[Key, ...]
    temperature: float
    #: Hash of all prompts as the model saw them; None where the file does not say them.
    prompts: str | None

    @property
    def gold(self) -> IntArray:
        """Return the index of each question's right letter, shape (N,)."""
        return np.array([right for _, right, _ in self.keys], dtype=np.int64)


@dataclass(eq=False)
class Entry:
    """Hold a line of the board: a run at the temperature of a filter or a fit."""

    run: Run
    #: Follows the run's label, such as " + temperature".
    suffix: str
    tasks: dict[str, Answers]

    @property
    def label(self) -> str:
        """Return the name on the board."""
        return self.run.label + self.suffix

    def is_again(self, other: Entry) -> bool:
        """Return whether the other is the same model, evaluated again in its folder, or elsewhere on other tasks."""
        mine, theirs = ((e.run.model_args, e.run.settings, e.suffix) for e in (self, other))
        return mine == theirs and (self.run.folder == other.run.folder or not self.tasks.keys() & other.tasks.keys())


def read_entries(folders: Sequence[Path], step: Callable[[str], None]) -> tuple[list[Entry], list[str]]:
    """Read the models in the folders and their answers; a large group of tasks is one task.

    Args:
        folders: Output folders of lm_eval.
        step: Called with a text after each file.

    Returns:
        The entries, not labeled yet, and notes that name the files left out and why.

    Raises:
        UserError: A folder has no run, no task can be ranked, or a samples file is damaged.
    """
    runs = merge_runs(runs_of(folders))
    set_labels(runs)
    found, notes = read_questions(runs, step)
    entries = []
    for run, tasks in zip(runs, pool_groups(runs, same_tasks(found)), strict=True):
        inside = {name for questions in tasks.values() for name in questions.pooled}
        tasks = {task: questions for task, questions in tasks.items() if task not in inside}
        for method in methods_of(run, tasks) if tasks else ():
            answers = {task: _answers(questions, method.temperature(questions)) for task, questions in tasks.items()}
            entries.append(Entry(run, method.label.removeprefix(run.label), answers))
    if not entries:
        raise UserError(
            f"{folders[0]} has no task that can be ranked ({'; '.join(notes) or 'no samples'}); give the output folder "
            "of an evaluation with --log_samples"
        )
    return entries, notes


def _answers(questions: Questions, temperature: float) -> Answers:
    known = questions.prompts and all(questions.prompts)
    # In the questions' own order, whatever the file's.
    told = repr(sorted(zip(questions.keys, questions.prompts, strict=True))) if known else ""
    prompts = hashlib.sha256(told.encode()).hexdigest() if known else None
    return Answers(questions.loglikelihoods, questions.keys, temperature, prompts)


def joined(board: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """Return the entries of a board and new ones, labeled; a model that is there already gets its new answers."""
    entries = list(board)
    for entry in new:
        same = next((known for known in board if known.is_again(entry)), None)
        if same is None:
            entries.append(entry)
        else:
            same.tasks |= entry.tasks
            same.run.shots |= entry.run.shots
    runs = {id(entry.run): entry.run for entry in entries}
    set_labels(list(runs.values()))
    return entries
