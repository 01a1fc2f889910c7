"""Compute the dictionary of results from which page, figures and tables are made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibtune import __version__
from calibtune.errors import UserError
from calibtune.parallel import Map
from calibtune.reporting.badges import badges
from calibtune.reporting.labels import set_labels
from calibtune.reporting.mistakes import mistakes
from calibtune.reporting.numbers import MOST_DRAWN, SAME_T, Method, compare, measure, methods_of
from calibtune.reporting.questions import MANY, Questions, pool_groups, read_questions, same_tasks
from calibtune.reporting.runs import SCALED, Run, evaluations, find_runs, join_shards, merge_runs
from calibtune.reporting.winrates import win_rates
from calibtune.results.pairs import SAME_ANSWERS, matching_rows
from calibtune.results.records import DATED
from calibtune.text import visible
from harness_ext.binning import IntArray

#: Larger differences between the harness's conf-ECE and the recomputed one are reported in a note.
AGREE = 1e-6


def build(
    folders: Sequence[Path],
    base: str | None = None,
    labels: Sequence[str] = (),
    step: Callable[[str], None] = lambda _: None,
    mapped: Map = map,
) -> dict[str, Any]:
    """Read the runs in the folders and compute all results.

    Args:
        folders: Output folders of lm_eval, each with one or more runs.
        base: Folder or label of the run to compare with; the first run by default.
        labels: The user's labels, one for each run.
        step: Called with a text after each piece of work.
        mapped: ``map``, or one over several processes.

    Returns:
        A dictionary that can be written as JSON, in which undefined numbers are None:
        ``base``; ``methods``, a list in the report's order; ``tasks`` by name, each with
        ``questions``, ``pooled``, ``figures`` and ``methods`` by label (see
        :func:`calibtune.reporting.numbers.measure`) with ``difference``; ``win_rates``; ``notes``.

    Raises:
        UserError: There are no runs, the base is unknown, or the labels do not fit the runs.
        UserError: A samples file is damaged.
    """
    runs = runs_of(folders)
    if not labels:
        runs = merge_runs(runs)
    set_labels(runs, labels)
    base_run = _base(runs, base)
    found, notes = read_questions(runs, step, mapped)
    order = sorted(range(len(runs)), key=lambda i: runs[i] is not base_run)
    runs = [runs[i] for i in order]
    questions = pool_groups(runs, same_tasks([found[i] for i in order]))
    rates = win_rates(runs, base_run)
    if not any(questions) and not rates:
        raise UserError(
            f"{folders[0]} has no task that can be reported ({'; '.join(notes) or 'no samples'}); give the output "
            "folder of an evaluation with --log_samples"
        )
    methods = [(m, tasks) for run, tasks in zip(runs, questions, strict=True) for m in methods_of(run, tasks)]
    tasks = _tasks(methods, step, mapped)
    prompts = [*_other_settings(runs, base_run), *_other_prompts(runs, questions)]
    notes += [*_disagreements(methods, tasks), *(note for *_, note in prompts), *_same_answers(runs, questions)]
    _add_badges_and_mistakes(methods, tasks, prompts)
    results = {
        "calibtune": __version__,
        "base": methods[0][0].label,
        "methods": [_describe(method, tasks) for method, tasks in methods],
        "tasks": tasks,
        "win_rates": rates,
        "notes": notes,
    }
    if len(methods) > MOST_DRAWN:
        notes.append(f"figures show the first {MOST_DRAWN} of {len(methods)} methods; tables and results.json show all")
    if len(methods) > 1:
        for task, entries in compare(methods, methods[0][0], step, mapped).items():
            for label, difference in entries.items():
                tasks[task]["methods"][label]["difference"] = difference
                if not difference["questions"]:
                    notes.append(f"{label} and {results['base']} share no question of {task}")
    return dict(plain(results))


def runs_of(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of all folders, each once.

    Raises:
        UserError: See :func:`calibtune.reporting.runs.find_runs`.
    """
    runs: list[Run] = []
    known = set()
    for folder in itertools.chain.from_iterable(map(evaluations, folders)):
        for run in find_runs(folder):
            mark = (run.folder.resolve(), run.date, run.settings, str(run.model_args))
            if mark not in known:
                known.add(mark)
                runs.append(run)
    return join_shards(runs)


def _base(runs: Sequence[Run], base: str | None) -> Run:
    if base is None:
        return next((run for run in runs if run.files), runs[0])
    for run in runs:
        if base == run.label or Path(base).resolve() in {each.resolve() for each in (run.source, run.folder, *run.own)}:
            return run
    known = ", ".join(run.label for run in runs)
    raise UserError(f"--base {base} is neither a folder of a run nor a label; give one of the labels: {known}")


def _tasks(
    methods: Sequence[tuple[Method, Mapping[str, Questions]]], step: Callable[[str], None], mapped: Map
) -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = {}
    inside: set[str] = set()
    for _, questions in methods:
        for task, each in questions.items():
            entry = tasks.setdefault(task, {"questions": 0, "pooled": [], "figures": False, "methods": {}})
            entry["questions"] = max(entry["questions"], len(each.gold))
            entry["pooled"] = entry["pooled"] or list(each.pooled)
            inside.update(each.pooled)
    tasks = dict(sorted(tasks.items(), key=lambda item: (not item[1]["pooled"], item[0] in inside)))
    for task in [task for task in tasks if task not in inside][:MANY]:
        tasks[task]["figures"] = True
    pairs = [(method, task, questions[task]) for method, questions in methods for task in tasks if task in questions]
    asked = [(questions, method.temperature(questions), tasks[task]["figures"]) for method, task, questions in pairs]
    for (method, task, _), entry in zip(pairs, mapped(_measured, asked), strict=True):
        tasks[task]["methods"][method.label] = entry
        step(f"measure {method.label} on {task}")
    return tasks


def _measured(asked: tuple[Questions, float, bool]) -> dict[str, Any]:
    return measure(*asked)


def _add_badges_and_mistakes(
    methods: Sequence[tuple[Method, Mapping[str, Questions]]],
    tasks: Mapping[str, dict[str, Any]],
    prompts: Sequence[tuple[str, str, str]],
) -> None:
    for method, questions in methods:
        run = method.run
        for task, each in questions.items():
            entry = tasks[task]["methods"][method.label]
            said = "; ".join(note for label, of, note in prompts if label == run.label and of in ("", task))
            entry["badges"] = badges(each, entry["numbers"], run, task, said)
            if tasks[task]["figures"]:
                names = [name for own in each.pooled or (task,) for name in (own, f"{own}{SCALED}")]
                files = [path for name in names for path in run.files.get(name, ())]
                entry["mistakes"] = mistakes(each, entry["temperature"], files)


def _describe(method: Method, tasks: Mapping[str, Questions]) -> dict[str, Any]:
    run, made = method.run, method.run.made()
    fitted = run.fitted_temperature() if method.fixed is not None else None
    scaled = any(abs(method.temperature(questions) - 1) > SAME_T for questions in tasks.values())
    source = str(fitted[1]) if fitted else f"filter {method.filter}" if scaled else None
    return {
        "label": method.label,
        "model": run.model,
        "adapter": run.adapter,
        "method": made.method,
        "seed": made.seed,
        "settings": list(run.settings),
        "folder": str(run.folder),
        "date": run.date,
        "temperature_from": source,
    }


def _disagreements(
    methods: Sequence[tuple[Method, Mapping[str, Questions]]], tasks: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Return notes on each conf-ECE of lm_eval that differs from the recomputed one."""
    notes = []
    for method, questions in methods:
        for task in questions:
            own = method.run.results.get(task, {}).get(f"conf_ece_10,{method.filter or 'none'}")
            ours = tasks[task]["methods"][method.label]["numbers"]["conf_ece_10"]
            if method.fixed is None and isinstance(own, (int, float)) and abs(own - ours) > AGREE:
                notes.append(
                    f"{method.label}, {task}: conf-ECE is {own:.6f} in the results file, but {ours:.6f} recomputed "
                    "from the samples; the report shows the recomputed one"
                )
    return notes


def _other_settings(runs: Sequence[Run], base: Run) -> list[tuple[str, str, str]]:
    """Return label, task ("" for all) and note of runs whose settings differ from the base's."""
    notes = []
    for run in runs:
        if run.model_args and base.model_args and run.settings != base.settings and run.files:
            words = [f"with {', '.join(each.settings)}" if each.settings else "without" for each in (run, base)]
            notes.append((run.label, "", f"{run.label} was evaluated {words[0]}, {base.label} {words[1]}"))
        for task in sorted(run.shots.keys() & base.shots.keys() & run.files.keys()):
            if run.shots[task] != base.shots[task]:
                shots = f"{run.shots[task]} few-shot examples, {base.label} with {base.shots[task]}"
                notes.append((run.label, task, f"{task}: {run.label} was evaluated with {shots}"))
    return notes


def _shared(
    runs: Sequence[Run], questions: Sequence[Mapping[str, Questions]]
) -> Iterator[tuple[Run, str, Questions, Questions, IntArray, IntArray]]:
    """Yield run, task, its questions, the base's (the first run's), and the rows of those that both have."""
    for run, tasks in zip(runs[1:], questions[1:], strict=True):
        for task in sorted(tasks.keys() & questions[0].keys()):
            mine, theirs = tasks[task], questions[0][task]
            rows, base_rows = matching_rows(mine.keys, theirs.keys)
            if len(rows):
                yield run, task, mine, theirs, rows, base_rows


def _other_prompts(runs: Sequence[Run], questions: Sequence[Mapping[str, Questions]]) -> list[tuple[str, str, str]]:
    """Return label, task and note of runs that were asked in other words than the base, with the same settings."""
    base, notes = runs[0], []
    for run, task, mine, theirs, rows, base_rows in _shared(runs, questions):
        if mine.prompts and theirs.prompts and run.settings == base.settings:
            pairs = zip(rows.tolist(), base_rows.tolist(), strict=True)
            other = sum(mine.prompts[row] != theirs.prompts[base_row] for row, base_row in pairs)
            if other:
                cause = f"; {DATED}" if run.dated or base.dated else ""
                note = f"{task}: {other} of {len(rows)} prompts of {run.label} are not those of {base.label}{cause}"
                notes.append((run.label, task, note))
    return notes


def _same_answers(runs: Sequence[Run], questions: Sequence[Mapping[str, Questions]]) -> list[str]:
    """Return notes on other models that gave the base's numbers."""
    base, notes = runs[0], []
    for run, task, mine, theirs, rows, base_rows in _shared(runs, questions):
        same = np.array_equal(mine.loglikelihoods[rows], theirs.loglikelihoods[base_rows], equal_nan=True)
        if same and (run.model, run.adapter) != (base.model, base.adapter):
            notes.append(f"{task}: {run.label} and {base.label} {SAME_ANSWERS}")
    return notes


def plain(value: Any) -> Any:
    """Replace NaN, such as an empty bin's accuracy, by None, because JSON has no NaN; show what names hide."""
    if isinstance(value, Mapping):
        return {visible(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return visible(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
