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
        numbers = entries[label]["numbers"]
        if before != label and before in entries:
            text = gain(task, entries[before]["numbers"], label.removeprefix(f"{before} + "), numbers)
        else:
            text = gain(task, numbers)
        rows.append({"label": label, "text": text, "badges": entries[label]["badges"]})
    return rows


def gain(task: str, numbers: Mapping[str, Any], fit: str = "", after: Mapping[str, Any] | None = None) -> str:
    """Say how sure a model is and how often it is right, and the same after a fit.

    Example:
        >>> gain("arc", {"mean_confidence": 0.96, "acc": 0.7}, "RCFT", {"mean_confidence": 0.71, "acc": 0.71})
        '96 % sure, 70 % right on arc; after RCFT 71 % sure, 71 % right.'
    """
    text = f"{sure_and_right(numbers)} on {task}"
    if after is not None:
        # A comma divides the number of a temperature from the next one.
        text += f"; after {fit}{',' * fit[-1].isdigit()} {sure_and_right(after)}"
    return f"{text}."


def sure_and_right(numbers: Mapping[str, Any]) -> str:
    """Return mean confidence and accuracy in words, such as "96 % sure, 70 % right"."""
    return f"{100 * numbers['mean_confidence']:.0f} % sure, {100 * numbers['acc']:.0f} % right"


def _unfitted(method: Mapping[str, Any]) -> bool:
    return not (method["adapter"] or method["method"] or method["temperature_from"])


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
