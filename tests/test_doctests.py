"""Examples in docstrings."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("harness_ext", "calibtune") for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in FILES
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_pass(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


def test_maths_modules_have_examples():
    assert {"harness_ext.binning", "harness_ext.calibration", "harness_ext.intervals"} <= set(MODULES)
