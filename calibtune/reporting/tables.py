"""Build the report's tables, which the page, Markdown and LaTeX show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from calibtune.reporting.badges import AT_CHANCE
from calibtune.results.table import calibrated
from harness_ext.registry import METRICS

#: Number of decimals.
DIGITS = 3
#: Titles of all columns with numbers.
TITLES = {name: metric.title for name, metric in METRICS.items()} | {
    "mean_confidence": "mean confidence",
    "auroc": "AUROC",
}
#: Columns of a task's tables: what a phone shows without scrolling comes first, and 14 bins are a check beside.
FIRST = ("acc", "conf_ece_10", "nll", "mean_confidence", "auroc", "cw_ece_10", "brier", "letter_mass")
CHECK = ("conf_ece_14", "cw_ece_14")
#: Columns of the table of all tasks.
FEW = ("acc", "conf_ece_10", "cw_ece_10", "nll")
BETTER, WORSE = "▲", "▼"


@dataclass(frozen=True)
class Cell:
    """Hold a cell's text, interval and mark."""

    value: str
    interval: str = ""
    #: "better" or "worse" if the difference's interval excludes 0, "text" for words, "above" of a name, else empty.
    kind: str = ""
    mark: str = ""


#: Name of a row that has the name of the row above.
ABOVE = Cell("", kind="above")


@dataclass
class Table:
    """Hold a table's head and rows; the first cell of a row is its name, :data:`ABOVE` where the row above has it."""

    head: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def named(self, number: int) -> int:
        """Return how many rows the name of a row is for."""
        later = [row[0] == ABOVE for row in self.rows[number + 1 :]]
        return 1 + (later.index(False) if False in later else len(later))


def measures(task: Mapping[str, Any], names: Sequence[str] = FIRST) -> Table:
    """Return metrics of all methods on a task, with their intervals; the true error too, where p* is known."""
    entries = task["methods"]
    known = names == FIRST and any("theory" in entry for entry in entries.values())
    table = Table(["method", *(TITLES[name] for name in names), *["TCE"] * known, "T", "N"])
    for label, entry in entries.items():
        cells = [number_cell(entry["numbers"], name) for name in names]
        if known:
            cells.append(_true_error(entry))
        table.rows.append([Cell(label), *cells, Cell(f"{entry['temperature']:.3g}"), Cell(f"{entry['questions']:,}")])
    return table


def _true_error(entry: Mapping[str, Any]) -> Cell:
    if "theory" not in entry:
        return Cell("–")
    found = entry["theory"]["tce"]
    return number_cell({"tce": found["estimate"], "tce_low": found["low"], "tce_high": found["high"]}, "tce")


def noise(task: Mapping[str, Any], names: Sequence[str] = FIRST) -> Table:
    """Return each ECE of all methods beside what a calibrated model would show."""
    table = Table(["method", "measure", "value", "floor", "excess", "debiased", "calibrated?"])
    for label, entry in task["methods"].items():
        numbers = entry["numbers"]
        for place, name in enumerate(name for name in names if f"{name}_floor" in numbers):
            floor = Cell(f"{numbers[f'{name}_floor']:.{DIGITS}f}", f"95% to {numbers[f'{name}_floor_95']:.{DIGITS}f}")
            found = [number_cell(numbers, name), floor, Cell(signed(numbers[f"{name}_excess"], DIGITS))]
            found += [
                Cell(f"{numbers[f'{name}_debiased']:.{DIGITS}f}"),
                Cell(calibrated(numbers[f"{name}_p"]), kind="text"),
            ]
            table.rows.append([ABOVE if place else Cell(label), Cell(METRICS[name].title, kind="text"), *found])
    return table


def refinement(task: Mapping[str, Any]) -> Table:
    """Return NLL and Brier score of all methods, split into missing knowledge and what calibration costs."""
    names = ("nll", "brier")
    heads = [(METRICS[name].title, "of it missing knowledge", "of it calibration") for name in names]
    table = Table(["method", *(head for group in heads for head in group)])
    for label, entry in task["methods"].items():
        numbers, cells = entry["numbers"], [Cell(label)]
        for name in names:
            left, cost = numbers[f"{name}_refined"], numbers[f"{name}_calibration"]
            known = [Cell("–"), Cell("–")] if left is None else [Cell(f"{left:.{DIGITS}f}"), Cell(signed(cost, DIGITS))]
            cells += [number_cell(numbers, name), *known]
        table.rows.append(cells)
    return table


def number_cell(numbers: Mapping[str, Any], name: str) -> Cell:
    """Return a number with its interval."""
    low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
    if numbers[name] is None:
        return Cell("–")
    interval = "" if low is None or high is None else f"{low:.{DIGITS}f}–{high:.{DIGITS}f}"
    return Cell(f"{numbers[name]:.{DIGITS}f}", interval)


def differences(task: Mapping[str, Any], names: Sequence[str] = FIRST) -> Table | None:
    """Return the paired differences of all methods to the base on a task, or None without others."""
    names = [name for name in names if name in METRICS]
    table = Table(["method", *(TITLES[name] for name in names), "N paired"])
    for label, entry in task["methods"].items():
        if found := entry.get("difference"):
            cells = [_unless_guessing(difference_cell(found, name), entry) for name in names]
            table.rows.append([Cell(label), *cells, Cell(f"{found['questions']:,}")])
    return table if table.rows else None


def _unless_guessing(cell: Cell, entry: Mapping[str, Any]) -> Cell:
    """Return a cell without the mark of a gain if the model guesses: it is easily calibrated, and of no use."""
    guesses = AT_CHANCE in entry.get("badges", {}) and cell.kind == "better"
    return replace(cell, kind="", mark="") if guesses else cell


def difference_cell(found: Mapping[str, Any], name: str) -> Cell:
    """Return a difference, marked better or worse if its interval excludes 0."""
    if name not in found:
        return Cell("–")
    item = found[name]
    mark, kind = marked(item, METRICS[name].higher_is_better)
    return Cell(signed(item["estimate"]), _signed_interval(item), kind, mark)


def signed(value: float, digits: int = DIGITS) -> str:
    """Return a difference with its sign, but without one if it rounds to 0.

    Example:
        >>> signed(0.25, 2), signed(-1e-9, 2)
        ('+0.25', '0.00')
    """
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def _signed_interval(item: Mapping[str, Any]) -> str:
    return f"{signed(item['low'])} to {signed(item['high'])}"


def marked(item: Mapping[str, Any], higher_is_better: bool) -> tuple[str, str]:
    """Return mark and kind of a difference, both empty if its interval contains 0."""
    if not item["clear"]:
        return "", ""
    return (BETTER, "better") if (item["estimate"] > 0) == higher_is_better else (WORSE, "worse")


def all_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a few metrics of each task and method, with the marks of their differences."""
    table = Table(["task", "method", "N", *(METRICS[name].title for name in FEW)])
    for task, entries in tasks.items():
        for label, entry in entries["methods"].items():
            row = [Cell(task), Cell(label, kind="text"), Cell(f"{entry['questions']:,}")]
            found = entry.get("difference", {})
            for name in FEW:
                cell = number_cell(entry["numbers"], name)
                mark, kind = marked(found[name], METRICS[name].higher_is_better) if name in found else ("", "")
                row.append(_unless_guessing(Cell(cell.value, cell.interval, kind, mark), entry))
            table.rows.append(row)
    return table


def temperature(task: Mapping[str, Any]) -> Table | None:
    """Return conf-ECE, cw-ECE and NLL at T = 1 and at T, or None if no method has a temperature."""
    names = ("conf_ece_10", "cw_ece_10", "nll")
    heads = [f"{METRICS[name].title}, {when}" for name in names for when in ("T = 1", "at T")]
    table = Table(["method", "T", *heads])
    for label, entry in task["methods"].items():
        if "unscaled" in entry:
            cells = [number_cell(entry[when], name) for name in names for when in ("unscaled", "numbers")]
            table.rows.append([Cell(label), Cell(f"{entry['temperature']:.3g}"), *cells])
    return table if table.rows else None


def entropies(task: Mapping[str, Any]) -> Table:
    """Return the entropies of the chosen and of the right options, and the largest possible one."""
    table = Table(["method", "chosen", "right", "most possible", "most chosen option"])
    for label, entry in task["methods"].items():
        found = entry["options"]
        share, letter = max(zip(found["chosen"], found["letters"], strict=True), key=lambda item: item[0])
        bits = [Cell(f"{found[name]:.3f}") for name in ("entropy_chosen", "entropy_right", "entropy_most")]
        table.rows.append([Cell(label), *bits, Cell(f"{letter} ({share:.1%})")])
    return table


def win_rates(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the win rates, with differences to the base if the same pairs were judged."""
    table = Table(["model", "win rate", "difference to base", "benchmark", "against", "N", "note"])
    for row in rows:
        ends = row.get("low"), row.get("high")
        interval = "" if None in ends else f"{ends[0]:.{DIGITS}f}–{ends[1]:.{DIGITS}f}"
        found = row.get("difference")
        cell = Cell("–")
        if found:
            mark, kind = marked(found, True)
            cell = Cell(signed(found["estimate"]), _signed_interval(found), kind, mark)
        words = [Cell(str(row.get(key) or "–"), kind="text") for key in ("benchmark", "baseline")]
        count = f"{row['n']:,}" if isinstance(row.get("n"), int) else "–"
        rate = Cell(f"{row['win_rate']:.{DIGITS}f}", interval)
        note = Cell(row.get("note") or "", kind="text")
        table.rows.append([Cell(row["label"]), rate, cell, *words, Cell(count), note])
    return table


def runs(methods: Sequence[Mapping[str, Any]]) -> Table:
    """Return model, settings and folder of each method, without empty columns."""
    heads = {
        "model": "model",
        "adapter": "adapter",
        "method": "fitted by",
        "seed": "seed",
        "settings": "settings",
        "temperature_from": "temperature from",
        "folder": "folder",
    }
    heads = {key: head for key, head in heads.items() if any(method[key] not in (None, []) for method in methods)}
    table = Table(["method", *heads.values()])
    for method in methods:
        words = [method[key] for key in heads]
        texts = [", ".join(word) if isinstance(word, list) else word for word in words]
        cells = [Cell("–" if text in (None, "") else str(text), kind="text") for text in texts]
        table.rows.append([Cell(method["label"]), *cells])
    return table


def titled(results: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Return all tables with their titles, for the files."""
    found = []
    for name, task in results["tasks"].items():
        if task["figures"]:
            found.append((f"{name}: measures", measures(task)))
            found.append((f"{name}: ECE and its noise", noise(task)))
            found.append((f"{name}: knowledge and calibration", refinement(task)))
            for title, table in (("differences", differences(task)), ("temperature", temperature(task))):
                suffix = f" to {results['base']}" if title == "differences" else ", before and after"
                found += [(f"{name}: {title}{suffix}", table)] if table else []
            found.append((f"{name}: entropy of the options, in bits", entropies(task)))
            found.append((f"{name}: 14 bins as a check", measures(task, CHECK)))
            found.append((f"{name}: ECE of 14 bins and its noise", noise(task, CHECK)))
            if (check := differences(task, CHECK)) is not None:
                found.append((f"{name}: differences of 14 bins to {results['base']}", check))
    if len(results["tasks"]) > sum(task["figures"] for task in results["tasks"].values()):
        found.append(("All tasks", all_tasks(results["tasks"])))
    if results["win_rates"]:
        found.append(("Win rates", win_rates(results["win_rates"])))
    return [*found, ("Runs", runs(results["methods"]))]
