import math

import pytest

from calibtune.reproduce.tables import collect
from harness_ext.registry import METRICS


def entry(value, temperature=1.0):
    numbers = {f"{name}{end}": value for name in METRICS for end in ("", "_low", "_high", "_floor")}
    return {"numbers": numbers, "temperature": temperature}


def test_seeds_become_mean_and_standard_deviation():
    methods = {
        "base": entry(0.5),
        "rcft, seed 0": entry(0.1),
        "rcft, seed 2": entry(0.3),
        "rcft-lambda-1, seed 0": entry(0.9),
    }
    rows = collect({"tasks": {"mc_calib_indomain": {"methods": methods}}})
    assert [(row["method"], row["seeds"]) for row in rows] == [("base", [0]), ("rcft", [0, 2]), ("rcft-lambda-1", [0])]
    assert rows[1]["conf_ece_10"]["mean"] == pytest.approx(0.2)
    assert rows[1]["conf_ece_10"]["sd"] == pytest.approx(math.sqrt(0.02))
    assert rows[1]["conf_ece_10"]["floor"] == pytest.approx(0.2)
    assert rows[0]["acc"]["sd"] is None


def test_a_temperature_counts_with_its_scaled_letters():
    methods = {"temperature, seed 0": entry(0.5), "temperature, seed 0 + temperature T = 2": entry(0.1, 2.0)}
    (row,) = collect({"tasks": {"mc_calib_arc_merged": {"methods": methods}}})
    assert (row["task"], row["temperature"], row["nll"]["mean"]) == ("out", [2.0], 0.1)
