"""The committed simulation of the ECE intervals' coverage, and the script that makes it."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    # By path: the name `coverage` is that of a well-known package.
    spec = importlib.util.spec_from_file_location("coverage_simulation", ROOT / "tests/benchmarks/interval_coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def committed(script):
    return json.loads(script.JSON.read_text())


def test_every_cell_of_the_committed_simulation_covers_at_least_93_percent(script, committed):
    names = [*script.TEMPERATURES, script.HALF_A, script.HALF_B, script.BLIND, script.MATCHED]
    names += [list(pair) for pair in script.PAIRS + script.EQUAL]
    expected = len(script.GENERATORS) * len(script.SIZES) * len(script.METRICS) * len(names)
    assert len(committed["cells"]) == expected
    assert committed["draws"] >= 500
    assert [cell for cell in committed["cells"] if cell["coverage"] < 0.93] == []


def test_pairs_of_equal_ece_are_marked_clear_at_most_7_percent_of_the_time(script, committed):
    pairs = [cell for cell in committed["cells"] if tuple(cell["of"]) in script.EQUAL]
    assert max(abs(cell["truth"]) for cell in pairs) < 1e-3
    assert max(cell["clear"] for cell in pairs) <= 0.07


def test_the_table_in_the_docs_is_made_from_the_committed_numbers(script, committed):
    assert script.TABLE.read_text() == script.markdown(committed)


def test_the_simulation_knows_the_true_errors_and_repeats_itself(script, monkeypatch):
    monkeypatch.setattr(script, "POPULATION", 20_000)
    metric = ("cw", 10)
    monkeypatch.setattr(script, "METRICS", (metric,))
    truth, matched = script.population("softmax")
    true = truth[metric]
    assert true["calibrated"] == pytest.approx(0, abs=1e-15)
    assert true[script.BLIND] == pytest.approx(0, abs=1e-15)
    assert 0.02 < true["T .8"] < true["T .4"] / 2
    assert matched[metric] > 1.05
    assert true[script.MATCHED] == pytest.approx(true["T .8"], abs=0.004)
    runs = [list(script.simulate("softmax", 60, (metric,), 2, 5, truth, matched)) for _ in range(2)]
    assert runs[0] == runs[1]
    (pair,) = [cell for cell in runs[0] if cell["of"] == ["calibrated", "T .4"]]
    assert pair["truth"] == pytest.approx(true["T .4"], abs=1e-5)
    assert pair["width"] > pair["before"]["width"] > 0
