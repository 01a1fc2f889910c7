"""Render the board's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibtune.reporting.html import rendered
from calibtune.reporting.leaderboard.compare import COVERAGE, SORTS
from calibtune.reporting.leaderboard.tables import TITLES, interval, members, number, ranks, size, sizes, title

#: Models in a table of pairs; more cannot be read, and are in pairs.csv.
MOST_PAIRED = 30


def render(results: Mapping[str, Any]) -> str:
    """Render the page as HTML.

    Args:
        results: Results of :func:`calibtune.reporting.leaderboard.build.build`.

    Returns:
        An HTML document without external references, which is complete without JavaScript.
    """
    count = len(results["models"])
    return rendered(
        "leaderboard/page.html",
        f"Leaderboard of {count} model{'s' * (count > 1)}",
        results=results,
        titles=TITLES,
        coverage=COVERAGE,
        tables=[_table(table, results) for table in results["tables"]],
        verdict=_verdict(results["tables"][0], results["sort"]),
    )


def _verdict(table: Mapping[str, Any], sort: str) -> str:
    """Say which model is first, and which cannot be told from it."""
    where = f"on average over {len(table['tasks'])} tasks" if len(table["tasks"]) > 1 else f"on {table['name']}"
    labels = [row["label"] for row in table["rows"]]
    apart = {frozenset((pair["a"], pair["b"])) for pair in table["pairs"][sort] if pair["better"] is not None}
    first, like = labels[0], [label for label in labels[1:] if frozenset((labels[0], label)) not in apart]
    text = f"{first} has the {title(sort)} {where}"
    if not labels[1:]:
        return f"{text}."
    if not like:
        return f"{text}, and is told apart from all {len(labels) - 1} others."
    few = ", ".join(like[:3]) + (f" and {len(like) - 3} more" if len(like) > 3 else "")
    return f"{text}; {few} cannot be told from it."


def _table(table: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    rows, parameters = table["rows"], sizes(results)
    scales = {name: _scale(rows, name) for name in SORTS.values()}
    groups = {sort: members(table, sort) for sort in SORTS}
    return {
        "name": table["name"],
        "text": _text(table),
        "rows": [
            {
                "label": row["label"],
                "size": size(parameters[row["label"]]),
                "parameters": parameters[row["label"]],
                "ranks": {sort: _rank(row, sort) for sort in SORTS},
                "groups": {sort: groups[sort][row["label"]] for sort in SORTS},
                "metrics": {sort: _metric(row["numbers"], name, scales[name]) for sort, name in SORTS.items()},
                "coverage": [row["numbers"][f"acc_at_{share}"] for share in COVERAGE],
            }
            for row in rows
        ],
        "paired": {sort: _matrix(table, sort) for sort in SORTS} if 1 < len(rows) <= MOST_PAIRED else None,
        "too_many": len(rows) > MOST_PAIRED,
    }


def _text(table: Mapping[str, Any]) -> str:
    count = f"{table['questions']:,} question{'s' * (table['questions'] > 1)}"
    return f"Mean of {', '.join(table['tasks'])}; {count} in all." if len(table["tasks"]) > 1 else f"{count}."


def _scale(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Return least and largest value of a column's strips; an ECE's begin at 0, where its floor lies."""
    ends = [row["numbers"][f"{name}_{end}"] for row in rows for end in ("low", "high")]
    least, most = min(ends), max(ends)
    return (0.0 if name.startswith("conf_ece") else least), most if most > least else least + 1


def _rank(row: Mapping[str, Any], sort: str) -> dict[str, Any]:
    text, ends = ranks(row, sort)
    return {"value": row["ranks"][sort]["rank"], "text": text, "interval": ends}


def _metric(numbers: Mapping[str, Any], name: str, scale: tuple[float, float]) -> dict[str, Any]:
    left, at, right = (_place(numbers[each], scale) for each in (f"{name}_low", name, f"{name}_high"))
    floor = numbers.get(f"{name}_floor")
    return {
        "value": numbers[name],
        "text": number(numbers[name]),
        "interval": interval(numbers, name),
        "left": left,
        "at": at,
        "width": round(right - left, 1),
        "floor": None if floor is None else number(floor),
        "floor_at": None if floor is None else _place(floor, scale),
    }


def _place(value: float, scale: tuple[float, float]) -> float:
    """Return a place on a strip, in percent of its width."""
    least, most = scale
    return round(100 * min(1.0, max(0.0, (value - least) / (most - least))), 1)


def _matrix(table: Mapping[str, Any], sort: str) -> list[dict[str, Any]]:
    """Return for each model, the best first, how it stands to each: "better", "worse", "same" or "self"."""
    better = {
        (pair["better"], *({pair["a"], pair["b"]} - {pair["better"]}))
        for pair in table["pairs"][sort]
        if pair["better"]
    }
    rows = sorted(table["rows"], key=lambda row: row["ranks"][sort]["rank"])
    labels = [row["label"] for row in rows]

    def kind(a: str, b: str) -> str:
        return "self" if a == b else "better" if (a, b) in better else "worse" if (b, a) in better else "same"

    return [{"label": a, "cells": [kind(a, b) for b in labels]} for a in labels]
