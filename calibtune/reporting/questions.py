"""The questions of each run and task as arrays, subjects pooled, and which tasks of two runs are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibtune.errors import UserError
from calibtune.reporting.runs import WIN_TASK, Run
from calibtune.results.pairs import Key, matching_rows, question_keys
from calibtune.results.samples import read_samples
from harness_ext.binning import FloatArray, IntArray
from harness_ext.ragged import ragged

#: A group with more tasks than this is pooled into one for the figures (MMLU has 57).
MANY = 6
#: How the task that evaluates a fitted temperature is named after its original.
SCALED = "_scaled"
#: Log-likelihoods (nats) closer than this in every letter of every question are one model's on one prompt.
SAME_ANSWERS = 0.05


@dataclass(frozen=True)
class Questions:
    """What one model answered on one task."""

    #: Raw log-likelihoods of the letters, shape (N, K), NaN where a question has fewer.
    loglikelihoods: FloatArray
    #: Index of the right letter, shape (N,).
    gold: IntArray
    #: See :func:`calibtune.results.pairs.question_keys`.
    keys: tuple[Key, ...]
    #: Filter -> its temperature, where the samples tell it.
    temperatures: dict[str, float]
    #: The tasks pooled here; empty for a single task.
    pooled: tuple[str, ...] = ()
    #: lm_eval's hash of each prompt as the model saw it; empty where the questions are pooled.
    prompts: tuple[str | None, ...] = ()


def read_questions(
    runs: Sequence[Run], step: Callable[[str], None] = lambda _: None
) -> tuple[list[dict[str, Questions]], list[str]]:
    """Read every samples file of every run that can be read as a multiple-choice task.

    Args:
        runs: The runs, labeled.
        step: Called with a text after each file.

    Returns:
        For each run its questions by task, and notes on the files left out with the reason.

    Raises:
        UserError: A file that begins as such a task is damaged or incomplete.
    """
    found: list[dict[str, Questions]] = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        tasks = {}
        for task, path in sorted(run.files.items()):
            reason = unsuitable(path, run.kinds.get(task), "win_rate,none" in run.results.get(task, {}))
            if reason is None:
                tasks[task] = _read(path)
            elif task != WIN_TASK:
                left_out.setdefault((task, reason), []).append(run.label)
            step(f"read {task}")
        for task in run.results:
            if any(name.startswith("conf_ece") for name in run.results[task]) and task not in run.files:
                left_out.setdefault((task, "it has no samples, evaluate it with --log_samples"), []).append(run.label)
        found.append(tasks)
    return found, [f"{task} is left out: {why} ({', '.join(labels)})" for (task, why), labels in left_out.items()]


def unsuitable(path: Path, kind: str | None, win_rate: bool = False) -> str | None:
    """Why a samples file cannot be one of letters with a right answer, judged by its first line; None if it can."""
    if win_rate or path.name.startswith(f"samples_{WIN_TASK}_"):
        return "it compares two responses"
    if kind is not None and kind != "multiple_choice":
        return f"its output is {kind}, not multiple choice"
    try:
        with path.open(encoding="utf-8") as file:
            sample = json.loads(file.readline())
        first = sample["resps"][0][0]
        scored = isinstance(first, list) and float(first[0]) <= 1e-3 and len(sample["resps"]) > 1
        target = sample.get("target")
    except (ValueError, KeyError, IndexError, TypeError):
        # A damaged first line is the reader's to explain; anything else is no log-likelihood of a choice.
        return None if kind == "multiple_choice" else "its responses are no log-likelihoods of choices"
    if not scored:
        return "its responses are no log-likelihoods of choices"
    return None if str(target).strip().isdigit() else f"its right answer is {target!r:.40}, not the index of a choice"


def _read(path: Path) -> Questions:
    rows = read_samples(path)
    return Questions(rows.log_probs, rows.labels, question_keys(rows), rows.temperatures, prompts=rows.prompt_hashes)


def same_tasks(found: Sequence[Mapping[str, Questions]]) -> list[dict[str, Questions]]:
    """Put the tasks that ``calibtune fit --method temperature`` generates under their original's name.

    ``X_scaled`` asks the questions of ``X`` with X's prompts, so it is one more temperature of X. Tasks of other names
    stay apart even on the same documents: their prompts may differ.
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
    """Whether both come from one model: batching moves log-likelihoods by less than this, a prompt by far more."""
    return a.keys == b.keys and np.allclose(a.loglikelihoods, b.loglikelihoods, atol=SAME_ANSWERS, equal_nan=True)


def pool_groups(runs: Sequence[Run], found: Sequence[Mapping[str, Questions]]) -> list[dict[str, Questions]]:
    """Add to each run its large groups as one task each, since a mean of the subjects' ECEs is not the ECE.

    Returns:
        The tasks with a pooled one, named as the group, for each outermost group of more than ``MANY`` tasks.
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

    def leaves(name: str, above: frozenset[str]) -> list[str]:
        if name in above:
            raise UserError(f"the results file's groups contain one another at {name!r}; run the evaluation again")
        return [leaf for task in groups[name] for leaf in (leaves(task, above | {name}) if task in groups else [task])]

    return {name: sorted(set(leaves(name, frozenset()))) for name in groups if name not in inside}


def _pool(parts: Sequence[Questions], names: tuple[str, ...]) -> Questions:
    # The task's name keeps questions apart that two subjects share.
    keys = tuple((f"{name} {key[0]}", *key[1:]) for name, part in zip(names, parts, strict=True) for key in part.keys)
    temperatures = [part.temperatures for part in parts]
    same = temperatures[0] if all(t.items() == temperatures[0].items() for t in temperatures) else {}
    loglikelihoods = ragged(row for part in parts for row in part.loglikelihoods)
    return Questions(loglikelihoods, np.concatenate([part.gold for part in parts]), keys, same, names)


def take(questions: Questions, rows: IntArray) -> Questions:
    """Some of the questions, in the order given."""
    return replace(
        questions,
        loglikelihoods=questions.loglikelihoods[rows],
        gold=questions.gold[rows],
        keys=tuple(questions.keys[row] for row in rows.tolist()),
    )


def match(a: Questions, b: Questions) -> tuple[Questions, Questions]:
    """Return the questions that both have, in the order of ``a``; empty where there are none."""
    mine, theirs = matching_rows(a.keys, b.keys)
    return take(a, mine), take(b, theirs)
