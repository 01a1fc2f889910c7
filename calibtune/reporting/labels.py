"""Give each run a short and unique label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from calibtune.errors import UserError
from calibtune.reporting.runs import Run


def set_labels(runs: Sequence[Run], given: Sequence[str] = ()) -> None:
    """Set the label of each run.

    By default a label is the model's name for a run without an adapter, the adapter's folder name
    if all runs have the same model, and both names otherwise. Equal labels get the settings and
    arguments that differ, then the folder.

    Args:
        runs: The runs in the report's order; changed in place.
        given: The user's labels, one for each run.

    Raises:
        UserError: There is not one label for each run, or two labels are the same.
    """
    if given:
        _check_given(runs, given)
        labels = list(given)
    else:
        labels = _unlike(runs, _derived(runs))
    for run, label in zip(runs, labels, strict=True):
        run.label = label


def _check_given(runs: Sequence[Run], given: Sequence[str]) -> None:
    if len(given) != len(runs):
        found = ", ".join(f"{number}. {run.folder}" for number, run in enumerate(runs, start=1))
        raise UserError(f"{len(given)} --label for {len(runs)} runs; give one for each of: {found}")
    doubled = [label for label, count in Counter(given).items() if count > 1]
    if doubled:
        raise UserError(f"--label {doubled[0]!r} is given twice; give each run a label of its own")


def _derived(runs: Sequence[Run]) -> list[str]:
    models = shortest_names([run.model for run in runs])
    adapters = shortest_names([run.adapter for run in runs if run.adapter])
    one_model = len(set(models)) == 1
    labels = []
    for run in runs:
        if not run.adapter:
            labels.append(models[run.model])
        elif one_model and len(runs) > 1:
            labels.append(adapters[run.adapter])
        else:
            labels.append(f"{models[run.model]} + {adapters[run.adapter]}")
    return labels


def shortest_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique tail of each path or hub id.

    Example:
        >>> shortest_names(["a/x/final", "a/y/final", "b/z"])
        {'a/x/final': 'x/final', 'a/y/final': 'y/final', 'b/z': 'z'}
    """
    distinct = list(dict.fromkeys(paths))
    parts = {path: PurePath(path).parts or (path,) for path in distinct}
    names = {}
    for path in distinct:
        for length in range(1, len(parts[path]) + 1):
            tail = parts[path][-length:]
            if sum(other[-length:] == tail for other in parts.values()) == 1:
                break
        names[path] = "/".join(tail)
    return names


def _unlike(runs: Sequence[Run], labels: list[str]) -> list[str]:
    for describe in (_settings, _arguments, _source, lambda run, _: str(run.folder)):
        doubled = {label for label, count in Counter(labels).items() if count > 1}
        alike = {label: [r for r, name in zip(runs, labels, strict=True) if name == label] for label in doubled}
        words = [describe(run, alike[label]) if label in alike else "" for run, label in zip(runs, labels, strict=True)]
        labels = [f"{label} ({word})" if word else label for label, word in zip(labels, words, strict=True)]
    # Runs that still have the same label differ in nothing that a label shows, so number them.
    counts = Counter(labels)
    seen: Counter[str] = Counter()
    for position, label in enumerate(labels):
        seen[label] += 1
        if counts[label] > 1:
            labels[position] = f"{label} #{seen[label]}"
    return labels


def _settings(run: Run, alike: Sequence[Run]) -> str:
    shared = set.intersection(*(set(other.settings) for other in alike))
    return ", ".join(word for word in run.settings if word not in shared)


def _source(run: Run, alike: Sequence[Run]) -> str:
    names = shortest_names([str(other.source) for other in alike])
    return names[str(run.source)] if len(names) == len(alike) else ""


def _arguments(run: Run, alike: Sequence[Run]) -> str:
    given = {
        key for other in alike for key in other.given_args() if len({str(r.given_args().get(key)) for r in alike}) > 1
    }
    return ", ".join(f"{key}={value}" for key, value in sorted(run.given_args().items()) if key in given)
