"""The documentation's tables are what the measurements in docs/data give."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("build_tables", ROOT / "docs" / "build_tables.py")
build_tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_tables)

TABLES = build_tables.read("tables")
FILES = ("models", "reproduce", "results", "speed", "theory")
PAGES = {str(page.relative_to(ROOT)): page for page in build_tables.pages()}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_the_data_give(page):
    text = PAGES[page].read_text(encoding="utf-8")
    assert build_tables.fill(text, TABLES) == text, "run `python docs/build_tables.py`"


def test_a_changed_number_is_seen(tmp_path, monkeypatch):
    data = json.loads((build_tables.DOCS / "data" / "results.json").read_text(encoding="utf-8"))
    data["demo"]["rows"][2]["conf_ece"] = 0.123
    changed = {**TABLES, "readme": TABLES["readme"]}
    monkeypatch.setattr(build_tables, "read", lambda name: data)
    text = PAGES["README.md"].read_text(encoding="utf-8")
    assert ".123" in build_tables.fill(text, changed)
    assert ".123" not in text


def test_every_table_is_shown_and_every_group_is_used():
    shown = [name for page in PAGES.values() for name in re.findall(r"<!-- table: (.*) -->", page.read_text("utf-8"))]
    assert sorted(set(shown)) == sorted(TABLES)
    groups = {f"{file}/{name}" for file in FILES for name in build_tables.read(file)}
    assert {spec["from"] for spec in TABLES.values()} == groups


@pytest.mark.parametrize("file", FILES)
def test_every_measurement_says_on_what_and_when(file):
    for name, group in build_tables.read(file).items():
        assert {"model", "date"} <= group["about"].keys(), name
        assert group["rows"], name


def test_no_table_is_typed_where_numbers_are_measured():
    """Outside of markers, a table's row of numbers would be one that nobody can recompute."""
    for name in ("results.md", "speed.md"):
        text = build_tables.MARKED.sub("", (build_tables.DOCS / name).read_text(encoding="utf-8"))
        assert not [line for line in text.splitlines() if line.startswith("|")], name


def test_cells():
    row = {"a": 0.0481, "b": [47.12, 0.6], "c": "text", "in": build_tables.Row(x=1.5)}
    assert build_tables.cell("{a:.3f} / {b:.1f}", row) == ".048 / 47.1\u00a0±\u00a0.6"
    assert build_tables.cell("{a:.3f} / {a:.2f}", row) == ".048\u00a0/\u00a0.05"
    assert build_tables.cell("{b:~.1f} {c:.3f}", row) == "47.1 text"
    assert build_tables.cell("{in[x]:.2f}", row) == "1.50"
    assert build_tables.cell("{a:.1f} / {missing:.1f}", row) == ""
    assert build_tables.cell("{out[x]:.2f}", row) == ""
