"""What ``calibtune eval`` shows beside lm_eval's numbers, and leaves out of lm_eval's files."""

import json

import numpy as np
import pytest
from evaluating import small_evaluation
from fitting import small_fit

from calibtune.__main__ import main
from calibtune.results.measures import floor_measures, refinement_measures
from calibtune.results.samples import find_samples, read_samples
from calibtune.results.table import numbers_table

TASK = "mc_calib_arc"
pytestmark = pytest.mark.usefixtures("mirror")


def evaluated(capsys, output, *more):
    words = ["eval", "--tasks", TASK, "--output", output, "--device", "cpu", "--precision", "fp32", *more]
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def added(samples, temperature=1.0):
    """Return what is not in lm_eval's results file."""
    arguments = samples.log_probs, samples.labels, temperature
    return floor_measures(*arguments) | refinement_measures(*arguments)


def samples_of(output):
    (path,) = find_samples(output)
    return read_samples(path)


def test_the_table_and_json_hold_floors_and_refinement_and_lm_evals_file_does_not(model, tmp_path, capsys):
    found = json.loads(evaluated(capsys, tmp_path / "out", "--model", model, "--json"))["results"][TASK]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    harness = {name.removesuffix(",none"): v for name, v in json.loads(path.read_text())["results"][TASK].items()}
    new = added(samples_of(tmp_path / "out"))
    assert not new.keys() & harness.keys()
    assert {name: found[name] for name in new} == pytest.approx(new)
    assert {name: harness[name] for name in found.keys() - new.keys()} == {
        name: found[name] for name in found.keys() - new.keys()
    }
    assert found["conf_ece_10_floor"] + found["conf_ece_10_excess"] == pytest.approx(found["conf_ece_10"], abs=1e-9)
    assert found["nll_refined"] + found["nll_calibration"] == pytest.approx(found["nll"], abs=1e-9)
    printed = evaluated(capsys, tmp_path / "again", "--model", model)
    assert numbers_table(f"{TASK}: 24 questions", found) + "\n" in printed
    assert "  calibrated?\n  conf_ece_10  " in printed


def test_each_filter_has_its_own_floors_and_both_the_same_refinement(model, tmp_path):
    artifact = small_fit(model, tmp_path / "t", "temperature")
    found = small_evaluation(tmp_path / "out", artifact=artifact.folder)
    samples = samples_of(found.folder)
    (task,) = found.results
    assert samples.temperatures["scaled"] != 1
    for name, temperature in samples.temperatures.items():
        end = "" if name == "none" else f",{name}"
        new = {key + end: value for key, value in added(samples, temperature).items()}
        assert {key: found.results[task][key] for key in new} == pytest.approx(new)
    assert found.results[task]["nll_refined"] == found.results[task]["nll_refined,scaled"]


def test_a_task_without_letters_and_files_of_earlier_runs_get_none(model, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        "calibtune.evaluation.measured.read_samples", lambda path: read.append(path) or read_samples(path)
    )
    first = small_evaluation(tmp_path / "out", model=str(model))
    second = small_evaluation(tmp_path / "out", ("mc_calib_arc_merged",), model=str(model))
    assert [path.name.partition("_20")[0] for path in read] == ["samples_mc_calib_arc", "samples_mc_calib_arc_merged"]
    assert first.folder == second.folder
    assert list(second.results) == ["mc_calib_arc_merged"]


def test_a_number_that_is_not_known_is_null_in_json(model, tmp_path, capsys):
    # Of two questions, each has the T of the other one, which is at its bounds.
    text = evaluated(capsys, tmp_path / "out", "--model", model, "--limit", "2", "--json")
    found = json.loads(text, parse_constant=pytest.fail)["results"][TASK]
    samples = samples_of(tmp_path / "out")
    right = samples.log_probs.argmax(axis=1) == samples.labels
    assert (found["nll_refined"] is None) == bool(np.any(right))
