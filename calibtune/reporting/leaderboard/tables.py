"""Write the board as CSV and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibtune.reporting.formats import csv_text, markdown_table
from calibtune.reporting.leaderboard.compare import COVERAGE, SORTS
from calibtune.reporting.tables import Cell, Table
from calibtune.text import markdown as escaped
from harness_ext.registry import METRICS

#: Short titles of what a board can be sorted by.
TITLES = {"nll": "NLL", "conf_ece": "conf-ECE", "acc": "accuracy"}
#: Decimals.
DIGITS = 3


def number(value: float) -> str:
    """Return a number as the board shows it."""
    return f"{value:.{DIGITS}f}"


def interval(numbers: Mapping[str, Any], name: str) -> str:
    """Return an interval as the board shows it."""
    return f"{number(numbers[f'{name}_low'])}–{number(numbers[f'{name}_high'])}"


def ranks(row: Mapping[str, Any], sort: str) -> tuple[str, str]:
    """Return a rank and its interval as the board shows them; a rank that is sure has none."""
    found = row["ranks"][sort]
    return str(found["rank"]), f"{found['low']}–{found['high']}" if found["low"] < found["high"] else ""


def size(parameters: int | None) -> str:
    """Return a number of parameters as people say it, "–" where it is not known.

    Example:
        >>> size(7_241_732_096), size(494_032_768), size(None)
        ('7.2B', '494M', '–')
    """
    if parameters is None:
        return "–"
    for unit, sign in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            value = parameters / unit
            return f"{value:.1f}{sign}" if value < 100 and not value.is_integer() else f"{value:.0f}{sign}"
    return str(parameters)


def members(table: Mapping[str, Any], sort: str) -> dict[str, str]:
    """Return the letters of each model's groups: models that share a letter cannot be told apart."""
    found: dict[str, list[str]] = {}
    for position, group in enumerate(table["groups"][sort]):
        for label in group:
            found.setdefault(label, []).append(_letters(position))
    return {label: " ".join(letters) for label, letters in found.items()}


def _letters(position: int) -> str:
    """Return a, b, ..., z, aa, ab, ..."""
    text = ""
    position += 1
    while position:
        position, letter = divmod(position - 1, 26)
        text = chr(ord("a") + letter) + text
    return text


def sizes(results: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the number of parameters of each model, by its label."""
    return {model["label"]: model["size"] for model in results["models"]}


def markdown(results: Mapping[str, Any]) -> str:
    """Return the board as GitHub's Markdown."""
    sort = results["sort"]
    parts = [
        "# Leaderboard",
        f"Ranked by {TITLES[sort]}; each number has its 95 % interval. Ranks have simultaneous 95 % intervals from "
        "pairwise tests with Holm's correction. Models that share a group's letter cannot be told apart.",
        *(f"> {escaped(note)}" for note in results["notes"]),
    ]
    parameters = sizes(results)
    for table in results["tables"]:
        parts += [f"## {escaped(table['name'])}", f"{table['questions']:,} questions.", ""]
        parts[-1] = markdown_table(_table(table, sort, parameters))
    return "\n\n".join(parts) + "\n"


def _table(table: Mapping[str, Any], sort: str, parameters: Mapping[str, int | None]) -> Table:
    found = Table(
        ["model", "size", "rank", "group", *(TITLES[name] for name in SORTS), "conf-ECE floor"]
        + [f"accuracy at {share} %" for share in COVERAGE]
    )
    groups = members(table, sort)
    for row in table["rows"]:
        numbers = row["numbers"]
        rank, ends = ranks(row, sort)
        found.rows.append(
            [
                Cell(row["label"]),
                Cell(size(parameters[row["label"]])),
                Cell(rank, ends),
                Cell(groups[row["label"]], kind="text"),
                *(Cell(number(numbers[name]), interval(numbers, name)) for name in SORTS.values()),
                Cell(number(numbers["conf_ece_10_floor"])),
                *(Cell(number(numbers[f"acc_at_{share}"])) for share in COVERAGE),
            ]
        )
    return found


def board_csv(results: Mapping[str, Any]) -> str:
    """Return all numbers, a row for each task and model."""
    parameters, rows = sizes(results), []
    for table in results["tables"]:
        groups = {sort: members(table, sort) for sort in SORTS}
        for row in table["rows"]:
            label = row["label"]
            line = {"task": table["name"], "model": label, "parameters": parameters[label]}
            line |= {"questions": table["questions"], **row["numbers"]}
            for sort, name in SORTS.items():
                found = row["ranks"][sort]
                line |= {f"{name}_rank": found["rank"], f"{name}_rank_low": found["low"]}
                line |= {f"{name}_rank_high": found["high"], f"{name}_group": groups[sort][label]}
            rows.append(line)
    return csv_text(rows)


def pairs_csv(results: Mapping[str, Any]) -> str:
    """Return the pairwise tests, a row for each task, metric and pair; the difference is b - a."""
    rows = []
    for table in results["tables"]:
        for sort, pairs in table["pairs"].items():
            rows += [{"task": table["name"], "metric": SORTS[sort], **pair} for pair in pairs]
    return csv_text(rows)


def title(sort: str) -> str:
    """Return what the best is called: "lowest NLL"."""
    return f"{'highest' if METRICS[SORTS[sort]].higher_is_better else 'lowest'} {TITLES[sort]}"
