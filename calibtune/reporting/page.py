"""Render the report's page, a single HTML file without external files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from calibtune.reporting import figures, tables
from calibtune.reporting.html import rendered
from calibtune.reporting.numbers import drawn
from calibtune.reporting.style import SHADE_TEXTS, inline_svg, styled

#: Number of class-wise panels in a row on the page; two are legible on a phone.
CLASSES_ACROSS = 2
#: Page beside the report's, of several methods.
REGIME = "regime.html"


def render(results: Mapping[str, Any], step: Callable[[str], None] = lambda _: None) -> str:
    """Render the page as HTML.

    Args:
        results: Results of :func:`calibtune.reporting.build.build`.
        step: Called with a text after each task's figures.

    Returns:
        An HTML document without external references.
    """
    tasks = []
    for number, (name, task) in enumerate(results["tasks"].items()):
        tasks.append(
            _task(number, name, task, results["base"]) if task["figures"] else {"name": name, "figures": False}
        )
        step(f"drawn {name}")
    shown = [task["name"] for task in tasks if task["figures"]]
    many = len(shown) < len(tasks)
    return rendered(
        "page.html",
        _title(results),
        results=results,
        summary=_summary(results),
        tasks=tasks,
        shade_texts=SHADE_TEXTS,
        many=tables.all_tasks(results["tasks"]) if many else None,
        hidden=many,
        figure_names=", ".join(shown),
        regime=REGIME if regime_page(results) else None,
        win_table=tables.win_rates(results["win_rates"]),
        run_table=tables.runs(results["methods"]),
    )


def regime_page(results: Mapping[str, Any]) -> bool:
    """Return whether the report has a page of regimes: there are several models to compare in figures."""
    return len(results["methods"]) > 1 and any(task["figures"] for task in results["tasks"].values())


def _title(results: Mapping[str, Any]) -> str:
    labels = [method["label"] for method in results["methods"]]
    return f"Calibration of {labels[0]}" if len(labels) == 1 else f"Calibration of {len(labels)} methods"


def _summary(results: Mapping[str, Any]) -> str:
    labels = [method["label"] for method in results["methods"]]
    count = len(results["tasks"])
    text = f"{', '.join(labels)}; {count} task{'' if count == 1 else 's'}."
    return text if len(labels) == 1 else f"{text} Compared to {results['base']}."


def _task(number: int, name: str, task: Mapping[str, Any], base: str) -> dict[str, Any]:
    entries = drawn(task)
    pooled = f"{len(task['pooled'])} tasks pooled into one, " if task["pooled"] else ""
    with styled():
        scaled = tables.temperature(task)
        return {
            "name": name,
            "figures": True,
            "text": f"{pooled}{figures.questions_text(task['questions'])}.",
            "table": tables.measures(task),
            "noise": tables.noise(task),
            "refinement": tables.refinement(task),
            "differences": tables.differences(task),
            "entropy": tables.entropies(task),
            **panels(f"t{number}", name, entries),
            "lines": [
                _drawn(
                    f"t{number}-plane",
                    figures.plane(entries),
                    f"Accuracy against conf-ECE on {name}: {_tell_all(entries)}",
                ),
                _drawn(f"t{number}-coverage", figures.coverage(entries), _tell_coverage(entries, name)),
            ],
            "temperature": scaled
            and {
                "table": scaled,
                "figures": [
                    _drawn(
                        f"t{number}-temperature",
                        figures.temperatures(entries),
                        f"conf-ECE and NLL at T = 1 and at the fitted T on {name}, as in the table.",
                    )
                ],
            },
        }


def panels(mark: str, task: str, entries: figures.Entries) -> dict[str, list[dict[str, Any]]]:
    """Return the figures that each method has of its own: ``reliability``, ``options`` and ``classwise``.

    Args:
        mark: Prefix of their ids on the page.
        task: Name of the task.
        entries: Its methods, by label.
    """
    return {
        "reliability": _panels(f"{mark}-reliability", entries, figures.reliability, _tell_reliability, task),
        "options": _panels(f"{mark}-options", entries, figures.options, _tell_options, task),
        "classwise": _panels(f"{mark}-classwise", entries, _classes, _tell_classes, task),
    }


def _panels(
    name: str,
    entries: figures.Entries,
    draw: Callable[..., Any],
    tell: Callable[[str, Mapping[str, Any], str], str],
    task: str,
) -> list[dict[str, Any]]:
    """Draw a separate figure for each method with the same scale, so that a phone can stack them."""
    return [
        # The caption has the full label if the title is shortened.
        _drawn(
            f"{name}-{i}",
            draw({label: entry}, entries),
            tell(label, entry, task),
            label * (figures.shorten(label) != label),
        )
        for i, (label, entry) in enumerate(entries.items())
    ]


def _classes(entries: figures.Entries, _: figures.Entries) -> Any:
    return figures.classwise(entries, across=CLASSES_ACROSS)


def _drawn(name: str, figure: Any, description: str, caption: str = "") -> dict[str, Any]:
    return {"id": name, "svg": Markup(inline_svg(figure, name, description)), "caption": caption}


def _tell_reliability(label: str, entry: Mapping[str, Any], task: str) -> str:
    numbers = entry["numbers"]
    return (
        f"Reliability diagram of {label} on {task}: mean confidence {numbers['mean_confidence']:.3f}, accuracy "
        f"{numbers['acc']:.3f}, conf-ECE {numbers['conf_ece_10']:.3f}, {figures.questions_text(entry['questions'])}."
    )


def _tell_options(label: str, entry: Mapping[str, Any], task: str) -> str:
    found = entry["options"]
    shares = zip(found["letters"], found["chosen"], found["right"], strict=True)
    text = "; ".join(f"{letter} chosen {chosen:.1%}, right {right:.1%}" for letter, chosen, right in shares)
    return f"Options of {label} on {task}: {text}."


def _tell_classes(label: str, entry: Mapping[str, Any], task: str) -> str:
    return (
        f"Reliability diagrams of {label} on {task}, one for each of {len(entry['classes'])} letters: "
        f"cw-ECE {entry['numbers']['cw_ece_10']:.3f}."
    )


def _tell_all(entries: figures.Entries) -> str:
    return "; ".join(
        f"{label}: accuracy {e['numbers']['acc']:.3f}, conf-ECE {e['numbers']['conf_ece_10']:.3f}"
        for label, e in entries.items()
    )


def _tell_coverage(entries: figures.Entries, task: str) -> str:
    half = "; ".join(
        f"{label} {e['numbers']['acc_at_50']:.3f} of {e['numbers']['acc']:.3f}" for label, e in entries.items()
    )
    return f"Accuracy at coverage on {task}. At half of the questions, and of all: {half}."
