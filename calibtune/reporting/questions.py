"""Read the questions of each run and task, pool groups of tasks, and match tasks of two runs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibtune.errors import UserError
from calibtune.parallel import Map
from calibtune.reading import Record, parse_json, read_lines
from calibtune.reporting.runs import SCALED, WIN_TASK, Run
from calibtune.results.pairs import Key, matching_rows, question_keys
from calibtune.results.ranges import range_warning, unseen_ranges
from calibtune.results.samples import Response, read_samples
from harness_ext.binning import FloatArray, IntArray
from harness_ext.ragged import ragged

logger = logging.getLogger(__name__)

#: A group with more tasks than this is pooled into one task (MMLU has 57).
MANY = 6
#: If all log-likelihoods of two runs differ by less (in nats), model and prompts are the same.
SAME_ANSWERS = 0.05


class First(Record):
    """Hold what the first line of a samples file says of its task."""

    resps: list[Response]
    target: Any = None


@dataclass(frozen=True)
class Questions:
    """Hold a task's questions with a model's log-likelihoods."""

    #: Raw log-likelihoods of the letters, shape (N, K), NaN where the letter is absent.
    loglikelihoods: FloatArray
    #: Index of the right letter, shape (N,).
    gold: IntArray
    #: See :func:`calibtune.results.pairs.question_keys`.
    keys: tuple[Key, ...]
    #: Temperature of each filter for which it can be inferred.
    temperatures: dict[str, float]
    #: The pooled tasks; empty for a single task.
    pooled: tuple[str, ...] = ()
    #: lm_eval's hash of each prompt as the model saw it; empty where the questions are pooled.
    prompts: tuple[str | None, ...] = ()
    #: In how many questions a server did not show all letters.
    unseen: int = 0
    #: True probabilities of the letters, shape (N, K); None where nobody knows them.
    p_star: FloatArray | None = None


def read_questions(
    runs: Sequence[Run], step: Callable[[str], None] = lambda _: None, mapped: Map = map
) -> tuple[list[dict[str, Questions]], list[str]]:
    """Read the samples files of all multiple-choice tasks of all runs.

    Args:
        runs: The runs, with their labels.
        step: Called with a text after each file.
        mapped: ``map``, or one over several processes.

    Returns:
        The questions of each run by task, and notes that name the files left out and why.

    Raises:
        UserError: A samples file of a multiple-choice task is damaged or incomplete.
    """
    found: list[dict[str, Questions]] = []
    left_out: dict[tuple[str, str], list[str]] = {}
    files = [
        (paths, run.kinds.get(task), "win_rate,none" in run.results.get(task, {}))
        for run in runs
        for task, paths in sorted(run.files.items())
    ]
    read = mapped(_read, files)
    for run in runs:
        tasks = {}
        for task, questions in zip(sorted(run.files), itertools.islice(read, len(run.files)), strict=True):
            if isinstance(questions, Questions):
                tasks[task] = questions
            elif task != WIN_TASK:
                left_out.setdefault((task, questions), []).append(run.label)
            step(f"read {task}")
        for task in run.results:
            if any(name.startswith("conf_ece") for name in run.results[task]) and task not in run.files:
                left_out.setdefault((task, "it has no samples, evaluate it with --log_samples"), []).append(run.label)
        found.append(tasks)
    return found, [f"{task} is left out: {why} ({', '.join(labels)})" for (task, why), labels in left_out.items()]


def unsuitable(path: Path, kind: str | None, win_rate: bool = False) -> str | None:
    """Return why a samples file is not one of a letter task, judged by its first line, or None."""
    if win_rate or path.name.startswith(f"samples_{WIN_TASK}_"):
        return "it compares two responses"
    if kind is not None and kind != "multiple_choice":
        return f"its output is {kind}, not multiple choice"
    _, line = next(read_lines(path), (0, b""))
    try:
        first = parse_json(line, First, str(path))
    except UserError:
        # A damaged line of a multiple-choice task gets a better error when the file is read.
        return None if kind == "multiple_choice" else "its responses are not log-likelihoods of choices"
    if len(first.resps) < 2 or first.resps[0][0][0] > 1e-3:
        return "its responses are not log-likelihoods of choices"
    if not str(first.target).strip().isdigit():
        return f"its right answer is {first.target!r:.40}, not the index of a choice"
    return None


def _read(file: tuple[tuple[Path, ...], str | None, bool]) -> Questions | str:
    """Read a task's samples files; return why they are left out where they are."""
    paths, kind, win_rate = file
    if reason := unsuitable(paths[0], kind, win_rate):
        return reason
    rows = read_samples(*paths)
    if said := range_warning(rows, unseen_ranges(rows)):
        logger.warning("%s", said)
    return Questions(
        rows.log_probs,
        rows.labels,
        question_keys(rows),
        rows.temperatures,
        prompts=rows.prompt_hashes,
        unseen=int(rows.unseen.any(axis=1).sum()),
        p_star=rows.p_star,
    )


def same_tasks(found: Sequence[Mapping[str, Questions]]) -> list[dict[str, Questions]]:
    """Merge each task ``X_scaled``, written by ``fit --method temperature``, into its task ``X``.

    ``X_scaled`` has the same prompts as ``X``, so it adds a temperature to X. Other tasks are never
    merged, even on the same documents, because their prompts may differ.

    Args:
        found: Questions of each run by task.
    """
    originals = {(task, tuple(sorted(each.keys))) for tasks in found for task, each in tasks.items()}
    renamed = []
    for tasks in found:
        kept = {task: each for task, each in tasks.items() if not task.endswith(SCALED)}
        for task in tasks.keys() - kept.keys():
            each, original = tasks[task], task.removesuffix(SCALED)
            if (original, tuple(sorted(each.keys))) not in originals:
                kept[task] = each
            elif original not in kept:
                kept[original] = each
            elif _same_answers(kept[original], each):
                temperatures = {**kept[original].temperatures, **each.temperatures}
                kept[original] = replace(kept[original], temperatures=temperatures)
            else:
                kept[task] = each
        renamed.append(dict(sorted(kept.items())))
    return renamed


def _same_answers(a: Questions, b: Questions) -> bool:
    """Return whether both are from the same model and prompts, up to the effect of batching."""
    return a.keys == b.keys and np.allclose(a.loglikelihoods, b.loglikelihoods, atol=SAME_ANSWERS, equal_nan=True)


def pool_groups(runs: Sequence[Run], found: Sequence[Mapping[str, Questions]]) -> list[dict[str, Questions]]:
    """Pool each large group of tasks into one task, because a mean of ECEs is not the group's ECE.

    Args:
        runs: The runs, which know their groups.
        found: Questions of each run by task.

    Returns:
        The tasks of each run, with a pooled task for each outermost group of more than ``MANY``.
    """
    output = []
    for run, tasks in zip(runs, found, strict=True):
        pooled = {}
        for group, members in _outermost(run.groups).items():
            parts = [tasks[task] for task in members if task in tasks]
            if len(parts) > MANY and group not in tasks:
                pooled[group] = _pool(parts, tuple(task for task in members if task in tasks))
        output.append({**pooled, **tasks})
    return output


def _outermost(groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    inside = {task for tasks in groups.values() for task in tasks}

    def leaves(name: str) -> list[str]:
        found, waiting = {name}, [name]
        while waiting:
            new = set(groups.get(waiting.pop(), ())) - found
            found |= new
            waiting += new
        return sorted(found - groups.keys())

    return {name: leaves(name) for name in groups if name not in inside}


def _pool(parts: Sequence[Questions], names: tuple[str, ...]) -> Questions:
    # The task's name distinguishes the same question in two subjects.
    keys = tuple((f"{name} {key[0]}", *key[1:]) for name, part in zip(names, parts, strict=True) for key in part.keys)
    temperatures = [part.temperatures for part in parts]
    same = temperatures[0] if all(t.items() == temperatures[0].items() for t in temperatures) else {}
    loglikelihoods = ragged(row for part in parts for row in part.loglikelihoods)
    gold, unseen = np.concatenate([part.gold for part in parts]), sum(part.unseen for part in parts)
    return Questions(loglikelihoods, gold, keys, same, names, unseen=unseen)


def take(questions: Questions, rows: IntArray) -> Questions:
    """Return the questions at ``rows``, in that order."""
    return replace(
        questions,
        loglikelihoods=questions.loglikelihoods[rows],
        gold=questions.gold[rows],
        keys=tuple(questions.keys[row] for row in rows.tolist()),
        p_star=None if questions.p_star is None else questions.p_star[rows],
    )


def match(a: Questions, b: Questions) -> tuple[Questions, Questions]:
    """Return the questions that both have, in the order of ``a``, with each side's scores."""
    mine, theirs = matching_rows(a.keys, b.keys)
    return take(a, mine), take(b, theirs)
