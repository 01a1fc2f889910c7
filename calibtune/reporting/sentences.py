"""Say in plain words how sure each model is and how often it is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sentences(results: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Return a sentence for each method of a task.

    Args:
        results: Results of :func:`calibtune.reporting.build.build`.
        task: Name of the task.

    Returns:
        Rows with ``label``, ``text`` and ``badges``. A fit is said beside its model before it, where the report has it.
    """
    entries, rows = results["tasks"][task]["methods"], []
    plain = {method["model"]: method["label"] for method in reversed(results["methods"]) if _unfitted(method)}
    for method in results["methods"]:
        label, before = method["label"], plain.get(method["model"])
        if label not in entries:
            continue
        text = f"{_said(entries[label])} on {task}"
        if before != label and before in entries:
            text = f"{_said(entries[before])} on {task}; after "
            # A comma divides the number of a temperature from the next one.
            fit = label.removeprefix(f"{before} + ")
            text += f"{fit}{',' * fit[-1].isdigit()} {_said(entries[label])}"
        rows.append({"label": label, "text": f"{text}.", "badges": entries[label]["badges"]})
    return rows


def _unfitted(method: Mapping[str, Any]) -> bool:
    return not (method["adapter"] or method["method"] or method["temperature_from"])


def _said(entry: Mapping[str, Any]) -> str:
    numbers = entry["numbers"]
    return f"{100 * numbers['mean_confidence']:.0f} % sure, {100 * numbers['acc']:.0f} % right"


def before_after(results: Mapping[str, Any], task: str) -> list[str]:
    """Return the labels of the base and of the fit of its model with the least NLL, or the base alone.

    Without a fit, another model is the second.
    """
    base, entries = results["base"], results["tasks"][task]["methods"]
    models = {method["label"]: method["model"] for method in results["methods"]}
    others = [label for label in entries if label != base]
    fits = [label for label in others if models[label] == models[base]] or others
    best = sorted(fits, key=lambda label: float(entries[label]["numbers"]["nll"]))[:1]
    return [label for label in (base, *best) if label in entries]
