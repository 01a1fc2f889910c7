"""Render the page of regimes, a single HTML file without external files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from calibtune.parallel import Map
from calibtune.reporting import figures as report_figures
from calibtune.reporting.drawing import Drawing, draw_all
from calibtune.reporting.html import rendered
from calibtune.reporting.numbers import drawn as few
from calibtune.reporting.regime import figures, numbers
from calibtune.reporting.style import file_stem, panel_stem
from calibtune.reporting.tables import Cell, Table, number_cell, signed

#: Up to this many models are named at the top.
MOST_NAMED = 6
#: What each figure shows.
TOLD = {
    "plane": "Accuracy against conf-ECE, with the frontier,",
    "bounds": "TCE against the accuracy on the drawn answers, with both bounds,",
    "expected": "TCE against the accuracy expected over the answers, with its lower bound,",
    "classes": "cw-ECE against TCE, expected and drawn,",
}
#: What a fit's method is called.
METHODS = {"cft": "CFT", "rcft": "RCFT", "label-smoothing": "label smoothing", "auto": "mean of adapters"}


def render(
    results: Mapping[str, Any],
    step: Callable[[str], None] = lambda _: None,
    file: str = "regime.json",
    files: Mapping[str, bytes] = MappingProxyType({}),
    mapped: Map = map,
) -> tuple[str, Mapping[str, bytes]]:
    """Render the page as HTML.

    Args:
        results: Results of :func:`calibtune.reporting.build.build`.
        step: Called with a text after each figure.
        file: Name of the file with all numbers, beside the page.
        files: Files of the report's panels, by name: what both pages show is not drawn again.
        mapped: ``map``, or one over several processes.

    Returns:
        An HTML document without external references, and the files of the first figures of each task, by their names.
    """
    tasks = [
        _task(f"t{number}", name, results, files)
        for number, (name, task) in enumerate(results["tasks"].items())
        if task["figures"]
    ]
    made = draw_all([drawing for task in tasks for drawing in _drawings(task)], step, mapped)
    models = len(results["methods"])
    page = rendered(
        "page.html",
        "Accuracy against calibration" if models > 1 else f"Regime of {results['base']}",
        package="calibtune.reporting.regime",
        summary=_summary([method["label"] for method in results["methods"]]),
        notes=results["notes"],
        tasks=tasks,
        sure=numbers.SURE,
        file=file,
    )
    return page, made


def _summary(labels: Sequence[str]) -> str:
    """Return how many models there are, and which unless they are so many that only a table can list them."""
    named = f": {'; '.join(labels)}" if len(labels) <= MOST_NAMED else f", {labels[0]} first"
    return f"{len(labels)} model{'s' * (len(labels) > 1)}{named}."


def _draws(entries: Mapping[str, Any], families: Mapping[str, str]) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure of a task: the plane of all models, then the theory's where p* is known."""
    found: dict[str, Callable[[], Figure]] = {
        "plane": partial(figures.plane, entries, families, numbers.frontier(entries), _line(entries))
    }
    if numbers.p_star_known(entries):
        found |= {
            "bounds": partial(figures.drawn_bounds, entries, families),
            "expected": partial(figures.expected_bound, entries, families),
            "classes": partial(figures.classes_bound, entries),
        }
    return found


def _drawings(task: Mapping[str, Any]) -> list[Drawing]:
    """Return all figures of a task."""
    theory = task["theory"]["figures"] if task["theory"] else []
    return [*task["plane"], *theory, *task["spread"], *task["options"]]


def family(method: Mapping[str, Any]) -> str:
    """Return what made a model, as the key of the figures names it.

    Example:
        >>> family({"method": "rcft", "temperature_from": "filter scaled", "adapter": "runs/rcft"})
        'RCFT + temperature'
    """
    made = method["method"]
    parts = [METHODS.get(made, made)] if made else ["other adapter"] if method["adapter"] else []
    if method["temperature_from"] and made != "temperature":
        parts.append("temperature")
    return " + ".join(parts) or "not fitted"


def _task(mark: str, name: str, results: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    entries = results["tasks"][name]["methods"]
    known, best, shown = numbers.p_star_known(entries), numbers.frontier(entries), few(results["tasks"][name])
    families = {method["label"]: family(method) for method in results["methods"]}
    made = [
        Drawing(
            f"{mark}-{kind}",
            draw,
            f"{TOLD[kind]} on {name}; numbers in the table.",
            file=f"{file_stem(name)}_{kind}",
            # Inside a report they are on the page alone.
            formats=() if files else ("svg", "png"),
        )
        for kind, draw in _draws(entries, families).items()
    ]
    return {
        "name": name,
        "frontier": f"On the frontier, with less conf-ECE than all models of more accuracy: {'; '.join(best)}.",
        "verdict": _verdict_known(entries) if known else _verdict_unknown(entries),
        "plane": made[:1],
        "table": _models(entries, families, best),
        "theory": {"figures": made[1:], "drawn": _drawn_bounds(entries), "expected": _expected_bounds(entries)}
        if known
        else None,
        "collapse": _collapse(entries),
        "spread": [
            Drawing(
                f"{mark}-spread-{i}",
                partial(figures.spread, {label: entry}, shown),
                _tell_spread(label, entry, name),
                file=panel_stem(name, "spread", label),
            )
            for i, (label, entry) in enumerate(shown.items())
        ],
        "options": [
            Drawing(
                f"{mark}-options-{i}",
                files.get(f"{panel_stem(name, 'options', label)}.svg")
                or partial(report_figures.options, label, entry, shown),
                f"How often {label} chooses each option on {name}, and how often it is right.",
                file=panel_stem(name, "options", label),
            )
            for i, (label, entry) in enumerate(shown.items())
        ],
    }


def _line(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy up to which the calibratable regime is known to reach, for the figure."""
    if numbers.p_star_known(entries):
        best = next(iter(entries.values()))["theory"]["drawn_acc_star"]
        return {"accuracy": best, "text": f"acc* on these answers, {best:.3f}"}
    label = numbers.most_accurate_calibrated(entries)
    if label is None:
        return {}
    return {"accuracy": entries[label]["numbers"]["acc"], "text": "acc* is at or right of this line"}


def _verdict_known(entries: Mapping[str, Any]) -> str:
    found = numbers.verdicts(entries)
    above = [label for label in entries if found[label] == numbers.ABOVE]
    theory = next(iter(entries.values()))["theory"]
    text = (
        f"p* is known: acc* is {theory['acc_star']:.3f}, expected over the answers, and {theory['drawn_acc_star']:.3f} "
        "on the answers as they fell. No model can expect more than acc*, so on new answers all are calibratable. "
    )
    if not above:
        return f"{text}On these answers too, no model has clearly more."
    verb = "has" if len(above) == 1 else "have"
    return (
        f"{text}On these answers {'; '.join(above)} {verb} more, beyond the 95 % interval: answers learned by heart, "
        "or luck. On new answers no model, calibrated or not, keeps an accuracy above acc*."
    )


def _verdict_unknown(entries: Mapping[str, Any]) -> str:
    label = numbers.most_accurate_calibrated(entries)
    text = (
        "p* and acc* are not known for these questions, and no number of answers to them tells: TCE cannot be "
        "measured, and whether a model is above acc* cannot be known. What is known: acc* is at least the accuracy of "
        "each calibrated model. "
    )
    if label is None:
        return (
            f"{text}Every model here has more conf-ECE than a calibrated one would show by chance, so nothing is known "
            "of acc*."
        )
    found = entries[label]["numbers"]
    return (
        f"{text}{label} has accuracy {found['acc']:.3f} and conf-ECE {found['conf_ece_10']:.3f}, no more than a "
        f"calibrated model would show by chance (up to {found['conf_ece_10_floor_95']:.3f}). So models up to that "
        "accuracy are calibratable, as far as these questions tell; of those above it, it cannot be known."
    )


def _models(entries: Mapping[str, Any], families: Mapping[str, str], frontier: list[str]) -> Table:
    table = Table(["model", "accuracy", "conf-ECE, 10 bins", "floor", "frontier", "regime", "fitted by"])
    found = numbers.verdicts(entries)
    for number, (label, entry) in enumerate(entries.items(), start=1):
        values = entry["numbers"]
        table.rows.append(
            [
                Cell(f"{number}. {label}"),
                number_cell(values, "acc"),
                number_cell(values, "conf_ece_10"),
                Cell(f"{values['conf_ece_10_floor']:.4f}", f"up to {values['conf_ece_10_floor_95']:.4f}"),
                Cell("●" if label in frontier else ""),
                Cell(found[label], kind="text"),
                Cell(families[label], kind="text"),
            ]
        )
    return table


def _drawn_bounds(entries: Mapping[str, Any]) -> Table:
    table = Table(["model", "TCE", "acc − acc*", "c", "c |acc − acc*|", "2 |acc − acc*|", "upper line"])
    for label, entry in entries.items():
        found = entry["theory"]
        above, c = found["above"], found["c"]
        table.rows.append(
            [
                Cell(label),
                _cell(found["tce"]),
                Cell(signed(above["estimate"]), f"{signed(above['low'])} to {signed(above['high'])}"),
                Cell("–" if c is None else f"{c:.4f}", f"of {found['one_right']:,}"),
                Cell(f"{found['lower']:.4f}"),
                Cell(f"{found['upper']:.4f}"),
                Cell("above" if found["tce"]["estimate"] > found["upper"] else "below", kind="text"),
            ]
        )
    return table


def _expected_bounds(entries: Mapping[str, Any]) -> Table:
    table = Table(["model", "TCE", "accuracy", "acc* − acc", "cw-ECE", "TCE / letters", "conf-ECE", "TCE / 2"])
    for label, entry in entries.items():
        found = entry["theory"]
        tce = found["tce"]["estimate"]
        values = (
            found["acc"],
            found["acc_star"] - found["acc"],
            found["cw_ece"],
            tce / found["letters"],
            found["conf_ece"],
            tce / 2,
        )
        table.rows.append([Cell(label), _cell(found["tce"]), *(Cell(f"{value:.4f}") for value in values)])
    return table


def _cell(interval: Mapping[str, Any]) -> Cell:
    return Cell(f"{interval['estimate']:.4f}", f"{interval['low']:.4f}–{interval['high']:.4f}")


def _collapse(entries: Mapping[str, Any]) -> Table:
    table = Table(["model", "mean top probability", "sure", "entropy, bits", "most chosen", "chosen", "right"])
    rows = [(label, entry["spread"]) for label, entry in entries.items()]
    for label, found in rows:
        options = entries[label]["options"]
        most = max(range(len(options["chosen"])), key=options["chosen"].__getitem__)
        shares = [f"{options[name][most]:.1%}" for name in ("chosen", "right")]
        values = [f"{found['top']:.3f}", f"{found['sure']:.1%}", f"{found['entropy']:.3f}", options["letters"][most]]
        table.rows.append([Cell(label), *map(Cell, (*values, *shares))])
    if numbers.p_star_known(entries):
        found = next(iter(entries.values()))["theory"]["spread"]
        cells = map(Cell, (f"{found['top']:.3f}", f"{found['sure']:.1%}", f"{found['entropy']:.3f}", "–", "–", "–"))
        table.rows.append([Cell("p*"), *cells])
    return table


def _tell_spread(label: str, entry: Mapping[str, Any], task: str) -> str:
    found = entry["spread"]
    return (
        f"Probabilities of all options of {label} on {task}: mean of the largest {found['top']:.3f}, "
        f"{found['sure']:.1%} of the questions with one of at least {numbers.SURE}."
    )
