"""Compute the dictionary of results from which the board's files are made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from calibtune import __version__
from calibtune.reporting.leaderboard.compare import MACRO, Standing, macro, stand, table
from calibtune.reporting.leaderboard.entries import Entry
from calibtune.results.pairs import SAME_ANSWERS


def build(entries: Sequence[Entry], sort: str, step: Callable[[str], None]) -> dict[str, Any]:
    """Compare the entries on each task and on the mean over tasks.

    Args:
        entries: The labeled entries.
        sort: "nll", "conf_ece" or "acc".
        step: Called with a text after each task.

    Returns:
        A dictionary that can be written as JSON: ``sort``; ``models``, a list; ``tables``, the macro average first,
        see :func:`calibtune.reporting.leaderboard.compare.table`; ``notes``.

    Raises:
        UserError: Two models share no question of a task.
    """
    standings: dict[str, Standing] = {}
    for task in sorted({task for entry in entries for task in entry.tasks}):
        standings[task] = stand(task, [entry for entry in entries if task in entry.tasks])
        step(f"rank {task}")
    average = macro(standings, entries)
    tables = [table(task, [task], standing) for task, standing in standings.items()]
    if average:
        tables.insert(0, table(MACRO, *average))
    for each in tables:
        each["rows"].sort(key=lambda row: row["ranks"][sort]["rank"])
    return {
        "calibtune": __version__,
        "sort": sort,
        "models": [_describe(entry) for entry in entries],
        "tables": tables,
        "notes": [*_left_out(standings, average, entries), *(n for s in standings.items() for n in _notes(*s))],
    }


def _describe(entry: Entry) -> dict[str, Any]:
    run = entry.run
    return {
        "label": entry.label,
        "model": run.model,
        "adapter": run.adapter,
        "size": run.size,
        "settings": list(run.settings),
        "temperatures": {task: answers.temperature for task, answers in entry.tasks.items()},
        "folder": str(run.folder),
        "date": run.date,
    }


def _left_out(
    standings: dict[str, Standing], average: tuple[list[str], Standing] | None, entries: Sequence[Entry]
) -> list[str]:
    """Return notes on models and tasks that are not in the macro average."""
    if len(standings) < 2:
        return []
    if average is None:
        return [f"there is no {MACRO}: no model has two tasks that half of the models have"]
    tasks, standing = average
    lacking = [
        f"{entry.label} lacks {', '.join(task for task in tasks if task not in entry.tasks)}"
        for entry in entries
        if entry not in standing.entries
    ]
    fewer = [task for task in standings if task not in tasks]
    return [f"not in the {MACRO}: {'; '.join(lacking)}"] * bool(lacking) + [
        f"not in the {MACRO}, since less than half of the models have it: {task}" for task in fewer
    ]


def _notes(task: str, standing: Standing) -> list[str]:
    """Return notes on what makes models of a task hard to compare."""
    entries, notes = standing.entries, []
    common = standing.contests["acc"].questions
    counts = {entry.label: len(entry.tasks[task].keys) for entry in entries}
    fewest = min(counts, key=lambda label: counts[label])
    if max(counts.values()) > common:
        notes.append(
            f"{task}: models are compared on the {common:,} questions that all answered; {fewest} answered "
            f"{counts[fewest]:,}, others up to {max(counts.values()):,}"
        )
    shots = _by({entry.label: entry.run.shots.get(task) for entry in entries if task in entry.run.shots})
    if len(shots) > 1:
        told = [f"{count} in {_some(labels)}" for count, labels in shots.items()]
        notes.append(f"{task}: few-shot examples differ: {'; '.join(told)}")
    plain = [entry for entry in entries if not entry.run.settings and entry.tasks[task].prompts]
    prompts = _by({e.label: (e.tasks[task].prompts, e.run.shots.get(task), len(e.tasks[task].keys)) for e in plain})
    if len({key[0] for key in prompts}) > 1 and len({key[1:] for key in prompts}) == 1:
        notes.append(f"{task}: prompts differ: {' / '.join(_some(labels) for labels in prompts.values())}")
    answers = defaultdict(list)
    for entry in entries:
        answers[entry.tasks[task].loglikelihoods.tobytes()].append(entry)
    for same in answers.values():
        if len({(entry.run.model, entry.run.adapter) for entry in same}) > 1:
            notes.append(f"{task}: {' and '.join(entry.label for entry in same)} {SAME_ANSWERS}")
    return notes


def _by(labels: dict[str, Any]) -> dict[Any, list[str]]:
    found = defaultdict(list)
    for label, value in labels.items():
        found[value].append(label)
    return dict(found)


def _some(texts: Sequence[str]) -> str:
    """Return the first few of a list, and how many more there are."""
    more = len(texts) - 4
    return ", ".join(texts[:4] if more > 0 else texts) + (f" and {more} more" if more > 0 else "")
