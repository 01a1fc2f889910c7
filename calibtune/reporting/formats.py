"""Write the tables as Markdown, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from calibtune.reporting.sentences import sentences
from calibtune.reporting.tables import BETTER, WORSE, Cell, Table, titled
from calibtune.text import markdown as escaped
from calibtune.text import visible

ABOUT = (
    "Each number has its 95 % interval below or beside it. Differences are paired by question and marked if the "
    f"interval excludes 0: {BETTER} better, {WORSE} worse."
)
#: What a spreadsheet's formula begins with.
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    BETTER: r"$\blacktriangle$",
    WORSE: r"$\blacktriangledown$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def markdown(results: Mapping[str, Any]) -> str:
    """Return all tables as GitHub's Markdown."""
    parts = ["# Calibration report", ABOUT, *(f"> {_line(note)}" for note in results["notes"])]
    for name, task in results["tasks"].items():
        if task["figures"]:
            parts.append("\n".join(_said(row) for row in sentences(results, name)))
    for title, table in titled(results):
        parts += [f"## {escaped(title)}", markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def _said(row: Mapping[str, Any]) -> str:
    words = "".join(f" {name.capitalize()}: {escaped(why)}." for name, why in row["badges"].items())
    return f"- {escaped(row['label'])}: {escaped(row['text'])}{words}"


def markdown_table(table: Table) -> str:
    """Return one table as GitHub's Markdown."""
    lines = [table.head, ["---", *("---" if cell.kind == "text" else "---:" for cell in table.rows[0][1:])]]
    lines += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    interval = f"({cell.interval})" if cell.interval else ""
    return " ".join(part for part in (escaped(cell.value), cell.mark, interval) if part)


def _line(text: str) -> str:
    """Return a line of text that begins no list, rule or code."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escaped(text.strip()))


def table_csv(results: Mapping[str, Any]) -> str:
    """Return all numbers as CSV, a row for each task and method."""
    rows = [
        {
            "task": name,
            "method": label,
            "questions": entry["questions"],
            "temperature": entry["temperature"],
            "badges": "; ".join(entry["badges"]),
            **entry["numbers"],
        }
        for name, task in results["tasks"].items()
        for label, entry in task["methods"].items()
    ]
    return csv_text(rows)


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV that spreadsheets show as it is.

    A row may lack columns of others, such as a leaderboard's macro average.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _defused(value) for name, value in row.items()} for row in rows])
    return buffer.getvalue()


def _defused(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: OWASP's apostrophe before a text that begins as one."""
    if not isinstance(value, str):
        return value
    # Tabs and line ends, with which a formula can begin too, are written as Python does.
    text = visible(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def latex(results: Mapping[str, Any]) -> str:
    """Return all tables in LaTeX with booktabs; intervals are in a second, smaller line of a row."""
    parts = [
        "% Needs: \\usepackage{booktabs,amssymb,graphicx}",
        f"% {ABOUT}",
    ]
    labels: list[str] = []
    for title, table in titled(results):
        label = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        labels.append(label)
        again = labels.count(label)
        parts.append(_latex_table(title, f"{label}-{again}" if again > 1 else label, table))
    return "\n\n".join(parts) + "\n"


def _latex_table(title: str, label: str, table: Table) -> str:
    columns = "l" + "".join("l" if cell.kind == "text" else "r" for cell in table.rows[0][1:])
    rows = []
    for row in table.rows:
        rows.append(" & ".join(tex(f"{cell.value} {cell.mark}".strip()) for cell in row) + r" \\")
        if any(cell.interval for cell in row):
            rows.append(" & ".join(rf"{{\scriptsize {tex(c.interval)}}}" if c.interval else "" for c in row) + r" \\")
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{tex(title)}}}",
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(tex(head) for head in table.head) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def tex(text: str) -> str:
    r"""Escape LaTeX's special characters.

    Example:
        >>> print(tex("95 % of a_b"))
        95 \% of a\_b
    """
    return "".join(LATEX.get(sign, sign) for sign in text)
