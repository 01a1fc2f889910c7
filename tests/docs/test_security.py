"""SECURITY.md names a test for each promise."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_promise_names_a_test_that_there_is():
    text = (ROOT / "SECURITY.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|") and "---" not in line][1:]
    assert len(rows) > 10
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[3])
        assert named, row
        for name in named:
            assert f"def {name}(" in tests, name
