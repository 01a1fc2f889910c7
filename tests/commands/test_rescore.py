"""The command itself, in a process of its own: its numbers, its exit codes and its one line of complaint."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from lm_eval_files import answers, write_run
from sample_files import sample, write, write_results

from calibtune.__main__ import main
from calibtune.results.measures import floor_measures
from calibtune.results.table import calibrated
from harness_ext.calibration import conf_ece, letter_log_softmax


def rescore(*arguments):
    command = [sys.executable, "-m", "calibtune", "rescore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    loglikelihoods = np.log(rng.dirichlet(np.ones(5), count)[:, :4])
    return [sample(i, values, str(rng.integers(4))) for i, values in enumerate(loglikelihoods)]


def test_the_table_is_the_harnesss_to_the_last_digit(tiny_run):
    table, folder = tiny_run
    run = rescore(folder, "--json")
    assert (run.returncode, run.stderr) == (0, "")
    found = json.loads(run.stdout)
    # Each filter is shown at its own temperature.
    assert [name.rpartition(", filter ")[2] for name in found] == ["raw", "scaled"]
    for (name, numbers), pipeline, temperature in zip(found.items(), ("raw", "scaled"), (1.0, 2.5), strict=True):
        assert name.startswith(str(folder))
        assert (numbers["task"], numbers["questions"]) == ("both", 24)
        assert numbers["temperature"] == pytest.approx(temperature)
        harness = {key.removesuffix(f",{pipeline}"): v for key, v in table.items() if key.endswith(f",{pipeline}")}
        harness = {key: value for key, value in harness.items() if "stderr" not in key}
        assert len(harness) == 16
        # The file tells T to nine digits.
        digits = 1e-12 if temperature == 1 else 1e-8
        assert {key: numbers[key] for key in harness} == pytest.approx(harness, abs=digits)


def test_the_printed_table_holds_every_number_with_its_interval(tmp_path, capsys):
    write(tmp_path, rows(100))
    assert main(["rescore", str(tmp_path), "--json"]) == 0
    ((_, numbers),) = json.loads(capsys.readouterr().out).items()
    assert main(["rescore", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mc_calib_arc: 100 questions")
    eces = [f"{ece}_{bins}" for ece in ("conf_ece", "cw_ece") for bins in (10, 14)]
    width = max(len(name) for name in numbers if not name.startswith(tuple(eces)))
    for name in ("acc", "smooth_ece", "auroc", "brier_reliability", "acc_at_50", "nll_refined", "brier_calibration"):
        assert f"  {name:<{width}}  {numbers[name]:8.4f}\n" in printed
    for name in eces:
        low, high, floor, below, excess, debiased, p = (
            numbers[f"{name}_{more}"] for more in ("low", "high", "floor", "floor_95", "excess", "debiased", "p")
        )
        assert p < 0.05 if name.startswith("conf") else p < 1
        assert (
            f"  {name:<11}  {numbers[name]:.4f}  [{low:.4f}, {high:.4f}]  {floor:.4f}  {below:.4f}  {excess:+.4f}  "
            f"{debiased:8.4f}  {calibrated(p)}\n"
        ) in printed
    assert max(map(len, printed.splitlines()[1:])) <= 100


def test_bins_edge_and_temperature_are_heeded(tmp_path, capsys):
    path = write(tmp_path, [sample(i, np.log([0.6, 0.4]), str(i % 2)) for i in range(5)] + rows(50)[5:])
    loglikelihoods = np.full((50, 4), np.nan)
    gold = np.empty(50, int)
    for i, row in enumerate(map(json.loads, path.read_text().splitlines())):
        loglikelihoods[i, : len(row["resps"])] = [float(x[0][0]) for x in row["resps"]]
        gold[i] = int(row["target"])
    options = ["--bins", "7", "20", "--edge", "right", "--temperature", "1.5", "--json"]
    assert main(["rescore", str(path), *options]) == 0
    numbers = json.loads(capsys.readouterr().out)[str(path)]
    probs = np.exp(letter_log_softmax(loglikelihoods, 1.5))
    assert numbers["conf_ece_7"] == conf_ece(probs, gold, 7, "right")
    assert numbers["conf_ece_20"] == conf_ece(probs, gold, 20, "right")
    assert "conf_ece_10" not in numbers
    expected = floor_measures(loglikelihoods, gold, 1.5, (7, 20), "right")
    assert expected.keys() <= numbers.keys()
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_json_stays_json_where_a_number_is_undefined(tmp_path, capsys):
    write(tmp_path, [sample(i) for i in range(4)])
    assert main(["rescore", str(tmp_path), "--json"]) == 0
    ((_, numbers),) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail).items()
    assert numbers["auroc"] is None


def test_neither_torch_nor_lm_eval_is_loaded(tmp_path):
    write(tmp_path, rows(20))
    code = (
        "import sys; from calibtune.__main__ import main\n"
        f"code = main(['rescore', {str(tmp_path)!r}])\n"
        "heavy = {'torch', 'lm_eval', 'transformers', 'datasets', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_two_thousand_questions_take_under_two_seconds(tmp_path):
    write(tmp_path, rows(2000))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert rescore(tmp_path).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 2


def renamed(folder):
    write_results(folder, mc_calib_arc=3)
    return write(folder, rows(3), task="mc_calib_openbookqa")


def renamed_to_one_of_the_run(folder):
    write_results(folder, mc_calib_arc=3, mc_calib_openbookqa=5)
    return write(folder, rows(3), task="mc_calib_openbookqa")


def cut_in_mid_line(folder):
    path = write(folder, rows(3))
    path.write_text(path.read_text()[:-40])
    return path


def rows_missing(folder):
    write_results(folder, mc_calib_arc=5)
    return write(folder, rows(3))


def row_missing_without_results(folder):
    return write(folder, [row for row in rows(5) if row["doc_id"] != 2])


def generated(folder):
    return write(folder, [sample(i, resps=[["The answer is B."]], target="B") for i in range(3)], task="gsm8k")


def empty(folder):
    return write(folder, [])


def folder_without_samples(folder):
    write_results(folder, mc_calib_arc=3)
    return folder


def no_text(folder):
    path = folder / "samples.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    return path


def with_row(**change):
    values = change.pop("values", (-1.0, -2.0))
    return lambda folder: write(folder, [sample(0), sample(1, values, **change), sample(2)])


BAD_INPUT = {
    "another task's, renamed": (renamed, "has no task 'mc_calib_openbookqa', only ['mc_calib_arc']"),
    "another task's of the run": (renamed_to_one_of_the_run, "has 3 questions, but the run's results file counts 5"),
    "cut in mid-line": (cut_in_mid_line, ", line 3 is not JSON ("),
    "rows missing": (rows_missing, "has 3 questions, but the run's results file counts 5 (missing: [3, 4])"),
    "row missing, no results file": (row_missing_without_results, "question 2 is missing"),
    "rows doubled": (lambda folder: write(folder, rows(3) + rows(3)), "question 0 occurs twice"),
    "no right answer": (
        with_row(target=None),
        "line 2: target is None, which is not the index of an option; give a samples file",
    ),
    "right answer a blank": (with_row(target=""), "line 2: target is '', which is not the index"),
    "right answer out of range": (
        with_row(target="2"),
        "question 1: the right answer is 2, not the index of one of its 2 options",
    ),
    "right answer negative": (with_row(target="-1"), "line 2: target is '-1', which is not the index"),
    "NaN": (with_row(values=(-1.0, math.nan)), "line 2: resps.1.0.0 is 'nan', which is not a finite log-likelihood"),
    "infinite": (
        with_row(values=(-math.inf, -1.0)),
        "line 2: resps.0.0.0 is '-inf', which is not a finite log-likelihood",
    ),
    "no log-likelihood": (with_row(resps=[[[None, False]]]), "line 2: resps.0.0.0 is None, which is not a finite"),
    "one letter": (with_row(values=(-1.0,)), "row 1 has fewer than two letters"),
    "no letters": (with_row(resps=[]), "question 1: the right answer is 0, not the index of one of its 0 options"),
    "a generation task's": (generated, "line 1: resps.0.0 is 'The answer is B.', which should be"),
    "one value for everything": (
        lambda folder: write(folder, [sample(i, (-1.0, -1.0)) for i in range(3)]),
        "the same log-likelihood (question 0: -1.0)",
    ),
    "shared token": (
        lambda folder: write(folder, [sample(i, (-1.0 - i, -2.0, -2.0)) for i in range(12)]),
        "letters B and C have the same log-likelihood in all 12 questions",
    ),
    "empty": (empty, "is empty; run the evaluation again with --log_samples"),
    "no samples": (folder_without_samples, "has no samples_*.jsonl; run lm_eval with --log_samples"),
    "not there": (lambda folder: folder / "nowhere", "nowhere does not exist"),
    "no text": (no_text, "line 1 is not JSON"),
    "other JSON": (lambda folder: write(folder, [{"a": 1}]), "line 1 has no doc_id"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_exit_code_two_and_no_table(tmp_path, capsys, case):
    make, message = BAD_INPUT[case]
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    write(good, rows(3))
    assert main(["rescore", str(good), str(make(bad))]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("calibtune: error: ")
    assert said.err.count("\n") == 1
    assert message in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bins", "0"], "the number of bins is 0; give a number from 1 to 200"),
        (["--bins", "10", "100000"], "the number of bins is 100000; give a number from 1 to 200"),
        (["--temperature", "0"], "temperature is 0.0; give a finite number above 0"),
        (["--temperature", "nan"], "temperature is nan"),
    ],
)
def test_an_unusable_option_is_quoted(tmp_path, capsys, arguments, message):
    write(tmp_path, rows(3))
    assert main(["rescore", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_bins_that_cannot_be_are_refused_before_any_file_is_read(tmp_path, capsys):
    assert main(["rescore", str(tmp_path / "nowhere"), "--bins", "100000"]) == 2
    assert "the number of bins is 100000" in capsys.readouterr().err


@pytest.mark.parametrize(("other", "warned"), [({"pretrained": "org/other-7b"}, True), ({}, False)])
def test_the_same_log_likelihoods_of_two_models_are_warned_of(tmp_path, capsys, other, warned):
    for name, model in (("first", {}), ("second", other)):
        write_run(tmp_path / name, {"arc": answers(40)}, {"pretrained": "org/base-7b", **model})
    assert main(["rescore", str(tmp_path)]) == 0
    assert (
        "have the same log-likelihoods to the last bit, which two models do not" in capsys.readouterr().err
    ) == warned
