"""Write the tables of the documentation from the measurements in `docs/data`.

    python docs/build_tables.py            # write them into README.md and docs/*.md
    python docs/build_tables.py --check    # exit with 1 if a page differs

A page holds `<!-- table: name -->` and `<!-- end -->`; what lies between them is replaced by the table of that name.

`docs/data/results.json`, `reproduce.json`, `speed.json` and `models.json` hold groups of measured rows. `about` says on
what, when, and with which command they were measured. A number is a mean, a list of two is a mean and a standard
deviation; rows that have a `seed` are put together into such. To add a measurement, add rows there.
`docs/data/tables.json` says how a group is shown:

- `from`: the file and the group, `results/qwen-0.5b`.
- `columns`: the title and the cell of each column, as a format string over a row's fields. A cell is empty where
  a field is missing; `~` before a format leaves out the standard deviation.
- `where`: values that a field must have.
- `by` and `key`: put all rows with one value of `by` into one line; their fields are reached through the value of
  `key`, followed by `_T` for rows with a temperature: `{in[nll]:.3f}`, `{in_T[nll]:.3f}`.
- `caption`: false leaves out the line below the table that says what was measured.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
MARKED = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Fields of `about`, in the order of the caption.
CAPTION = ("model", "questions", "device", "seeds", "note", "date")


class Missing(Exception):
    """A row has no value for a field that a cell shows."""


class Value:
    """A measured value that formats itself: `.048`, `.048 ± .009`, or its text."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __format__(self, spec: str) -> str:
        if self.value is None:
            raise Missing
        if isinstance(self.value, str):
            return self.value
        numbers = self.value if isinstance(self.value, list) else [self.value]
        if spec.startswith("~"):
            numbers, spec = numbers[:1], spec[1:]
        return " ± ".join(re.sub(r"^(-?)0\.", r"\1.", format(number, spec)) for number in numbers)


class Row(dict[str, Any]):
    """A row's fields under their names; a missing one leaves its cell empty."""

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        return value if isinstance(value, Row) else Value(value)


def read(name: str, folder: Path = DOCS / "data") -> dict[str, Any]:
    """Read one of the JSON files of `docs/data`."""
    return dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def pivot(rows: Sequence[Mapping[str, Any]], by: str, key: str) -> list[dict[str, Any]]:
    """Put all rows with one value of `by` into one row; see the module's docstring."""
    lines: dict[Any, dict[str, Any]] = {}
    for row in rows:
        name = f"{row[key]}{'_T' if row.get('scaled') else ''}"
        lines.setdefault(row[by], {by: row[by]})[name] = Row(row)
    return list(lines.values())


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put rows that differ only in `seed` and in numbers into one: means and standard deviations of what is known."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple((k, v) for k, v in row.items() if not _is_number(v)), []).append(row)
    return [
        {
            **dict(key),
            **{
                name: _spread([row[name] for row in group if name in row])
                for name in dict.fromkeys(name for row in group for name in row)
                if name not in dict(key)
            },
        }
        for key, group in groups.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spread(values: Sequence[float]) -> Any:
    return values[0] if len(values) == 1 else [statistics.fmean(values), statistics.stdev(values)]


def cell(template: str, row: Mapping[str, Any]) -> str:
    """Fill a column's format string from a row; what belongs together is not broken over lines."""
    try:
        # Not str.format, which would need every field to be there.
        text = "".join(
            text + ("" if field is None else format(_look_up(field, row), spec or ""))
            for text, field, spec, _ in string.Formatter().parse(template)
        )
    except Missing:
        return ""
    return text.replace(" ± ", "\u00a0±\u00a0") if "±" in text else text.replace(" / ", "\u00a0/\u00a0")


def _look_up(field: str, row: Mapping[str, Any]) -> Value:
    found: Any = Row(row)
    for name in re.findall(r"[^\[\]]+", field):
        found = found[name] if isinstance(found, Row) else Value(None)
    return Value(None) if isinstance(found, Row) else found


def caption(about: Mapping[str, Any]) -> list[str]:
    """Return the lines below a table: what was measured, where, when, and by which command."""
    text = "; ".join(
        str(about[name]) if name != "seeds" else f"seeds {about[name]}" for name in CAPTION if name in about
    )
    lines = ["", f"*{text[:1].upper()}{text[1:]}.*"]
    if "command" in about:
        lines += ["", f"    {about['command']}"]
    return lines


def render(spec: Mapping[str, Any]) -> str:
    """Render one table of `tables.json` as Markdown."""
    file, group = spec["from"].split("/")
    source = read(file)[group]
    allowed = {name: values if isinstance(values, list) else [values] for name, values in spec.get("where", {}).items()}
    rows = [row for row in source["rows"] if all(row.get(name) in values for name, values in allowed.items())]
    if rows and "seed" in rows[0]:
        rows = over_seeds(rows)
    # In the order asked for, where one is: `where` lists it.
    for name, values in allowed.items():
        rows.sort(key=lambda row: values.index(row.get(name)))
    if "by" in spec:
        rows = pivot(rows, spec["by"], spec["key"])
    columns = spec.get("columns") or source["columns"]
    lines = [[title for title, _ in columns], ["---"] * len(columns)]
    lines += [[cell(template, row) for _, template in columns] for row in rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    if spec.get("caption", True):
        text += caption({**source["about"], **spec.get("about", {})})
    return re.sub(r" +\|", " |", "\n".join(text)) + "\n"


def fill(text: str, specs: Mapping[str, Any]) -> str:
    """Replace every marked table of a page.

    Raises:
        SystemExit: A page names a table that `tables.json` does not have.
    """

    def of_name(match: re.Match[str]) -> str:
        if match["name"] not in specs:
            raise SystemExit(f"docs/data/tables.json has no table {match['name']!r}")
        return f"{match[1]}{render(specs[match['name']])}{match[3]}"

    return MARKED.sub(of_name, text)


def pages() -> list[Path]:
    """Return the pages that may hold tables."""
    return [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables, or with --check say which pages differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page differs")
    check = parser.parse_args(argv).check
    specs = read("tables")
    differing = []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = fill(before, specs)
        if after != before:
            differing.append(page)
            if not check:
                page.write_text(after, encoding="utf-8")
    for page in differing:
        print(f"{page.relative_to(DOCS.parent)}: {'differs; run python docs/build_tables.py' if check else 'written'}")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
