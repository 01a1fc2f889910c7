import json
import math

import numpy as np
import pytest
from sample_files import DATE, sample, write, write_results

from calibtune.results.measures import harness_measures
from calibtune.results.samples import find_samples, read_samples
from harness_ext.errors import UserError


@pytest.mark.parametrize(("name", "temperature"), [("raw", 1.0), ("scaled", 2.5)])
def test_samples_file_reproduces_the_harness_metrics(tiny_run, name, temperature):
    table, folder = tiny_run
    (path,) = find_samples(folder)
    rows = read_samples(path)
    numbers = harness_measures(rows.log_probs, rows.labels, rows.temperatures[name])
    assert len(numbers) == 16
    assert rows.temperatures[name] == temperature
    assert {key: table[f"{key},{name}"] for key in numbers} == pytest.approx(numbers, abs=1e-12)


def test_harness_file_has_ordered_questions_with_ragged_letters(tiny_run):
    (path,) = find_samples(tiny_run[1])
    rows = read_samples(path)
    assert (rows.task, rows.filter, rows.path) == ("both", "raw", path)
    assert np.isfinite(rows.log_probs).sum(axis=1).tolist() == [4, 4, 3, 5] * 6
    assert [doc["gold"] for doc in rows.documents] == rows.labels.tolist()
    assert len(set(rows.doc_hashes)) == 24


def test_rows_are_sorted_by_document(tmp_path):
    rows = read_samples(write(tmp_path, [sample(1, target="1"), sample(0, (-3.0, -1.0))]))
    assert rows.labels.tolist() == [0, 1]
    assert rows.log_probs[0, :2].tolist() == [-3.0, -1.0]
    assert math.isnan(rows.log_probs[0, 2])
    assert rows.doc_hashes == ("hash0", "hash1")


def test_log_likelihoods_may_be_numbers_or_strings(tmp_path):
    rows = read_samples(write(tmp_path, [sample(0, resps=[[[-1.5, False]], [["-2.5e-3", "True"]]])]))
    assert rows.log_probs.tolist() == [[-1.5, -0.0025]]


def test_missing_questions_are_refused_unless_results_count_them(tmp_path):
    path = write(tmp_path, [sample(3), sample(17)])
    with pytest.raises(UserError, match="question 0 is missing"):
        read_samples(path)
    write_results(tmp_path, mc_calib_arc=2)
    assert len(read_samples(path).labels) == 2


@pytest.mark.parametrize("other", [[], [["-1.0", "False"]], [["-1.0", "False", "3"]], ["-1.0"]])
def test_responses_of_other_filters_give_no_temperature(tmp_path, other):
    assert read_samples(write(tmp_path, [sample(0, filtered_resps=other)])).temperatures == {}


def test_find_samples_returns_the_newest_file_per_task_and_folder(tmp_path):
    for folder, task, date in [("m", "x", "2026-01-01"), ("m", "x", "2026-01-02"), ("m", "y", "2026-01-01")]:
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder, [sample(0)], task, f"{date}T00-00-00.0")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", [sample(0)], "x", "2026-01-01T00-00-00.0")
    found = [str(path.relative_to(tmp_path)) for path in find_samples(tmp_path)]
    assert found == [
        "m/samples_x_2026-01-02T00-00-00.0.jsonl",
        "m/samples_y_2026-01-01T00-00-00.0.jsonl",
        "other/samples_x_2026-01-01T00-00-00.0.jsonl",
    ]


def test_find_samples_accepts_a_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(sample(0)))
    assert find_samples(path) == [path]
    assert read_samples(path).task == "mine"


def test_samples_changed_since_the_run_are_refused(tiny_run, tmp_path):
    (path,) = find_samples(tiny_run[1])
    (results,) = tiny_run[1].glob("results_*.json")
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps({**row, "target": "2", "target_hash": "0"})
    (tmp_path / path.name).write_text("\n".join(lines) + "\n")
    (tmp_path / results.name).write_text(results.read_text())
    with pytest.raises(UserError, match="its questions are not those of the run's results file"):
        read_samples(tmp_path / path.name)


def test_constant_log_likelihoods_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"arc_.*the same log-likelihood \(question 0: -1.0\)"):
        read_samples(write(tmp_path, [sample(i, (-1.0, -1.0)) for i in range(3)]))


def test_letters_that_always_tie_are_refused(tmp_path):
    with pytest.raises(UserError, match="letters B and C have the same log-likelihood in all 12"):
        read_samples(write(tmp_path, [sample(i, (-1.0 - i, -2.0, -2.0)) for i in range(12)]))


def test_row_with_one_letter_is_refused(tmp_path):
    path = write(tmp_path, [sample(0), sample(1, (-1.0,))])
    with pytest.raises(UserError, match=r"samples_mc_calib_arc_.*: row 1 has fewer than two letters: \[-1.0, nan"):
        read_samples(path)


@pytest.mark.parametrize("bad", [{"doc_id": "0"}, {"doc": "text"}, {"resps": "x"}])
def test_sample_with_a_wrong_field_type_is_refused(tmp_path, bad):
    with pytest.raises(UserError, match=rf"line 2: {next(iter(bad))} is .*, which should be a"):
        read_samples(write(tmp_path, [sample(0), {**sample(1), **bad}]))


def test_damaged_results_file_is_refused(tmp_path):
    path = write(tmp_path, [sample(0)])
    (tmp_path / f"results_{DATE}.json").write_text("{")
    with pytest.raises(UserError, match=r"results file is damaged: .*results_2026"):
        read_samples(path)


@pytest.mark.parametrize(
    "run",
    [
        [],
        {"n-samples": None},
        {"n-samples": {"mc_calib_arc": 1}},
        {"n-samples": {"mc_calib_arc": {"effective": None}}},
        {"n-samples": {"mc_calib_arc": {"effective": 1}}, "task_hashes": [1]},
    ],
    ids=str,
)
def test_malformed_results_file_is_refused(tmp_path, run):
    path = write(tmp_path, [sample(0)])
    (tmp_path / f"results_{DATE}.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match=rf"results file .*results_{DATE}.json.*; run the evaluation again"):
        read_samples(path)
