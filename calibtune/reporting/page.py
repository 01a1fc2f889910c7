"""Render the report's page, a single HTML file without external files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from calibtune.parallel import Map
from calibtune.reporting import figures, tables
from calibtune.reporting.drawing import Drawing, draw_all, warn_of_signs
from calibtune.reporting.html import rendered
from calibtune.reporting.numbers import drawn as few
from calibtune.reporting.sentences import before_after, sentences
from calibtune.reporting.style import FORMATS, SHADE_TEXTS, SLIDE_FORMATS, file_stem, panel_stem

#: Page beside the report's, of several methods.
REGIME = "regime.html"


def render(
    results: Mapping[str, Any], step: Callable[[str], None] = lambda _: None, mapped: Map = map
) -> tuple[str, Mapping[str, bytes]]:
    """Render the page as HTML.

    Args:
        results: Results of :func:`calibtune.reporting.build.build`.
        step: Called with a text after each figure.
        mapped: ``map``, or one over several processes.

    Returns:
        An HTML document without external references, and the figures' files, which lie beside the page, by their names.
    """
    warn_of_signs(results)
    tasks, pair = [], _pair(results)
    for number, (name, task) in enumerate(results["tasks"].items()):
        tasks.append(_task(number, name, results) if task["figures"] else {"name": name, "figures": False})
        if pair and pair["task"] == name:
            tasks[-1]["pair"] = pair["figures"]
    files = draw_all([drawing for task in tasks for drawing in _drawings(task)], step, mapped)
    shown = [task["name"] for task in tasks if task["figures"]]
    many = len(shown) < len(tasks)
    page = rendered(
        "page.html",
        _title(results),
        results=results,
        summary=_summary(results),
        pair=pair,
        tasks=tasks,
        shade_texts=SHADE_TEXTS,
        many=tables.all_tasks(results["tasks"]) if many else None,
        hidden=many,
        figure_names=", ".join(shown),
        regime=REGIME if regime_page(results) else None,
        win_table=tables.win_rates(results["win_rates"]),
        run_table=tables.runs(results["methods"]),
    )
    return page, files


def regime_page(results: Mapping[str, Any]) -> bool:
    """Return whether the report has a page of regimes: there are several models to compare in figures."""
    return len(results["methods"]) > 1 and any(task["figures"] for task in results["tasks"].values())


def _title(results: Mapping[str, Any]) -> str:
    labels = [method["label"] for method in results["methods"]]
    return f"Calibration of {labels[0]}" if len(labels) == 1 else f"Calibration of {len(labels)} methods"


def _summary(results: Mapping[str, Any]) -> str:
    methods, tasks = len(results["methods"]), len(results["tasks"])
    text = f"{methods} method{'s' * (methods > 1)} on {tasks} task{'s' * (tasks > 1)}"
    return f"{text}." if methods == 1 else f"{text}, compared to {results['base']}."


def _pair(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the panels before and after of the first task, as a slide shows them."""
    name = next((name for name, task in results["tasks"].items() if task["figures"]), None)
    if name is None:
        return None
    labels = before_after(results, name)
    entries = {label: results["tasks"][name]["methods"][label] for label in labels}
    return {
        "task": name,
        "figures": [
            Drawing(
                f"slide-{i}",
                partial(figures.slide, label, entry),
                _tell_reliability(label, entry, name),
                file=f"{('before', 'after')[i]}_{file_stem(label)}",
                formats=SLIDE_FORMATS,
            )
            for i, (label, entry) in enumerate(entries.items())
        ],
    }


def _task(number: int, name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    task = results["tasks"][name]
    entries = few(task)
    pooled = f"{len(task['pooled'])} tasks pooled into one, " if task["pooled"] else ""
    scaled = tables.temperature(task)

    def drawing(kind: str, draw: Callable[[figures.Entries], Figure], description: str) -> Drawing:
        file = f"{file_stem(name)}_{kind}"
        return Drawing(f"t{number}-{kind}", partial(draw, entries), description, file=file, formats=FORMATS)

    return {
        "name": name,
        "figures": True,
        "text": f"{pooled}{figures.questions_text(task['questions'])}.",
        "sentences": sentences(results, name),
        "table": tables.measures(task),
        "noise": tables.noise(task),
        "check": [tables.measures(task, tables.CHECK), tables.noise(task, tables.CHECK)],
        "check_differences": tables.differences(task, tables.CHECK),
        "mistakes": {label: entry["mistakes"] for label, entry in task["methods"].items()},
        "refinement": tables.refinement(task),
        "differences": tables.differences(task),
        "entropy": tables.entropies(task),
        **panels(f"t{number}", name, entries),
        "lines": [
            drawing("plane", figures.plane, f"Accuracy against conf-ECE on {name}: {_tell_all(entries)}"),
            drawing("coverage", figures.coverage, _tell_coverage(entries, name)),
        ],
        "temperature": scaled
        and {
            "table": scaled,
            "figures": [
                drawing(
                    "temperature",
                    figures.temperatures,
                    f"conf-ECE and NLL at T = 1 and at the fitted T on {name}, as in the table.",
                )
            ],
        },
    }


def _drawings(task: Mapping[str, Any]) -> Iterator[Drawing]:
    """Yield all figures of a task."""
    for kind in ("pair", "reliability", "lines", "options", "classwise"):
        yield from task.get(kind, ())
    yield from (task.get("temperature") or {}).get("figures", ())


def panels(mark: str, task: str, entries: figures.Entries) -> dict[str, list[Drawing]]:
    """Return the figures that each method has of its own: ``reliability``, ``options`` and ``classwise``.

    Methods have the same scale, and figures of their own, so that a phone can stack them.

    Args:
        mark: Prefix of their ids on the page.
        task: Name of the task.
        entries: Its methods, by label.
    """
    kinds: dict[str, tuple[Callable[..., Callable[[], Figure]], Callable[..., str]]] = {
        "reliability": (lambda label, entry: partial(figures.reliability, {label: entry}, entries), _tell_reliability),
        "options": (lambda label, entry: partial(figures.options, label, entry, entries), _tell_options),
        "classwise": (lambda label, entry: partial(figures.classwise, label, entry), _tell_classes),
    }
    return {
        kind: [
            # The caption has the full label if the title is shortened.
            Drawing(
                f"{mark}-{kind}-{i}",
                draw(label, entry),
                tell(label, entry, task),
                label * (figures.shorten(label) != label),
                panel_stem(task, kind, label),
                FORMATS,
            )
            for i, (label, entry) in enumerate(entries.items())
        ]
        for kind, (draw, tell) in kinds.items()
    }


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
