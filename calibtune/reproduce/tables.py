"""Put our numbers into the paper's tables, beside the paper's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibtune.files import write_json, write_text
from calibtune.reading import read_json
from calibtune.reporting.drawing import Drawing, draw_all
from calibtune.reporting.formats import markdown_table
from calibtune.reporting.html import rendered
from calibtune.reporting.numbers import scaled_label
from calibtune.reporting.page import REGIME, panels
from calibtune.reporting.style import SHADE_TEXTS
from calibtune.reporting.tables import Cell, Table
from calibtune.reproduce.plan import IN, LAMBDAS, OUT, Options
from harness_ext.registry import METRICS

#: Our names of the methods, as a reader of the paper knows them.
NAMES = {
    "base": "base",
    "temperature": "temperature",
    "label-smoothing": "label smoothing",
    "cft": "CFT",
    "rcft": "RCFT",
    **{name: name.replace("rcft-lambda-", "lambda ").replace("rcft-l-ece-alone", "L_ECE alone") for name in LAMBDAS},
}
#: Figures of the report that show what the paper's figures show.
FIGURES = {
    "options": "Figure 1: preference collapse, how often each option is chosen and how often it is right",
    "reliability": "Figures 3 and 5 to 8: reliability of the confidence",
    "classwise": "Figures 3 and 5 to 8: reliability class by class",
}
#: Titles of the tables of letters: methods, and number of bins.
LETTERS: dict[int, tuple[str, tuple[str, ...], int]] = {
    2: ("Table 2: calibration in and out of domain, 10 bins", tuple(NAMES)[:5], 10),
    4: ("Table 4: the weight of L_ECE, 10 bins", ("base", "rcft", *LAMBDAS), 10),
    5: ("Table 5: the same with 14 bins", tuple(NAMES)[:5], 14),
}
NOTE = (
    "Means over the seeds, with their standard deviation after ±, and the 95 % interval over the questions. "
    "Floor: what a perfectly calibrated model with the same probabilities shows, because an ECE sums absolute gaps. "
    "Rows marked (paper) are arXiv 2505.01997's own numbers, of its models on its draw of the questions."
)


def write_tables(options: Options) -> list[Path]:
    """Write the paper's tables beside ours, from the report's results.

    Args:
        options: What was reproduced; the report lies in its output folder.

    Returns:
        The files: ``reproduction.html``, ``.md`` and ``.json``.
    """
    results = read_json(options.output / "report" / "results.json")
    rows = collect(results)
    theirs = read_json(Path(__file__).with_name("paper.json"))
    found = [
        (title, _letters(rows, methods, bins, theirs if number == 2 else None))
        for number, (title, methods, bins) in LETTERS.items()
        if number in options.tables
    ]
    if 3 in options.tables:
        found.insert(2 in options.tables, ("Table 3: win rates", _wins(results["win_rates"], theirs["table3"])))
    head = f"{options.model}: the tables of arXiv 2505.01997, recipe: {options.config}"
    text = [f"# {head}", NOTE, *(part for title, table in found for part in (f"## {title}", markdown_table(table)))]
    files = [options.output / f"reproduction.{ending}" for ending in ("html", "md", "json")]
    page = rendered(
        "page.html",
        head,
        package="calibtune.reproduce",
        note=NOTE,
        tables=found,
        figures=_figures(results),
        notes=results["notes"],
        shade_texts=SHADE_TEXTS,
        regime=(options.output / "report" / REGIME).is_file(),
    )
    write_text(files[0], page)
    write_text(files[1], "\n\n".join(text) + "\n")
    write_json(
        files[2], {"model": options.model, "config": options.config, "rows": rows, "win_rates": results["win_rates"]}
    )
    return files


def _figures(results: Mapping[str, Any]) -> list[tuple[str, str, list[Drawing]]]:
    """Return kind, title and panels of the paper's figures: for the methods of table 2, of the first seed of each."""
    made: dict[str, dict[str, list[Drawing]]] = {}
    for task in (IN, OUT):
        entries = results["tasks"].get(task, {"methods": {}})["methods"]
        shown = {}
        for method in tuple(NAMES)[:5]:
            if labels := [label for label in entries if _seed(label, method) is not None]:
                shown[NAMES[method]] = entries[scaled_label(entries, labels[0])]
        if shown and all("bins" in entry for entry in shown.values()):
            made[task] = panels(task, task, shown)
    found = [
        # On this page alone: the report has their files.
        (kind, f"{FIGURES[kind]}; {task}", [replace(drawing, formats=()) for drawing in made[task][kind]])
        for kind in FIGURES
        for task in made
    ]
    draw_all([drawing for *_, drawings in found for drawing in drawings])
    return found


def collect(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gather each method's seeds into one row for each task.

    Args:
        results: The report's ``results.json``, its labels "base" or "METHOD, seed S".

    Returns:
        Rows with ``method``, ``task`` (in or out), ``seeds``, ``temperature`` and the metrics; a metric has ``mean``,
        ``sd`` over the seeds (None for one), ``low`` and ``high``, and an ECE ``floor``, each a mean over the seeds.
    """
    rows = []
    for task, name in ((IN, "in"), (OUT, "out")):
        entries = results["tasks"].get(task, {"methods": {}})["methods"]
        for method in NAMES:
            seeds = {label: seed for label in entries if (seed := _seed(label, method)) is not None}
            if seeds:
                chosen = [entries[scaled_label(entries, label)] for label in seeds]
                rows.append({"method": method, "task": name, "seeds": sorted(seeds.values()), **_spread(chosen)})
    return rows


def _seed(label: str, method: str) -> int | None:
    """Return the seed that a report's label names, if it is this method's; the base has none, which counts as 0."""
    found = re.fullmatch(rf"{re.escape(method)}(?:, seed (\d+))?", label)
    return None if found is None else int(found[1] or 0)


def _spread(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers = [entry["numbers"] for entry in entries]
    found: dict[str, Any] = {"temperature": [entry["temperature"] for entry in entries]}
    for metric in METRICS:
        values = np.array([each[metric] for each in numbers])
        found[metric] = {
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            **{end: float(np.mean([each[f"{metric}_{end}"] for each in numbers])) for end in ("low", "high")},
        }
        if f"{metric}_floor" in numbers[0]:
            found[metric]["floor"] = float(np.mean([each[f"{metric}_floor"] for each in numbers]))
    return found


def _letters(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], bins: int, theirs: Mapping[str, Any] | None
) -> Table:
    """Return a table of calibration in and out of domain: our methods, then the paper's rows."""
    metrics = (f"conf_ece_{bins}", f"cw_ece_{bins}", "acc", "nll")
    columns = [(metric, task) for metric in metrics for task in ("in", "out")]
    table = Table(["method", "seeds", *(f"{METRICS[metric].title.split(',')[0]}, {task}" for metric, task in columns)])
    found = {(row["method"], row["task"]): row for row in rows}
    for method in methods:
        if (method, "in") in found:
            cells = [_cell(found[method, task][metric]) for metric, task in columns]
            seeds = "–" if method == "base" else ", ".join(map(str, found[method, "in"]["seeds"]))
            table.rows.append([Cell(NAMES[method]), Cell(seeds), *cells])
    for model, method, *values in theirs["table2"] if theirs else ():
        shown = [Cell("–" if value is None else f"{value:.4f}") for value in (*values, None, None)]
        table.rows.append([Cell(f"{method}, {model} (paper)", kind="paper"), Cell("–"), *shown])
    return table


def _cell(metric: Mapping[str, Any]) -> Cell:
    spread = "" if metric["sd"] is None else f" ± {metric['sd']:.4f}"
    floor = f", floor {metric['floor']:.4f}" if "floor" in metric else ""
    return Cell(f"{metric['mean']:.4f}{spread}", f"{metric['low']:.4f}–{metric['high']:.4f}{floor}")


def _wins(rates: Sequence[Mapping[str, Any]], theirs: Sequence[Any]) -> Table:
    """Return table 3: our win rates as the report has them, seed by seed, then the paper's UltraFeedback rows."""
    table = Table(["method", "benchmark", "win rate", "pairs"])
    for row in rates:
        name, _, seed = row["label"].partition(",")
        ends = [row.get("low"), row.get("high")]
        interval = "" if None in ends else f"{ends[0]:.4f}–{ends[1]:.4f}"
        pairs = f"{row['n']:,}" if isinstance(row.get("n"), int) else "–"
        cells = [Cell(row["benchmark"], kind="text"), Cell(f"{row['win_rate']:.4f}", interval), Cell(pairs)]
        table.rows.append([Cell(NAMES.get(name, name) + (f",{seed}" if seed else "")), *cells])
    for model, method, value in theirs:
        cells = [Cell("UltraFeedback, summed log-probability", kind="text"), Cell(f"{value:.4f}"), Cell("–")]
        table.rows.append([Cell(f"{method}, {model} (paper)", kind="paper"), *cells])
    return table
