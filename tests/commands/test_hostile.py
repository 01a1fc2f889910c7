"""Mutated files of the shared cases, and others of their kinds, through the commands that read them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from lm_eval_files import answers, write_run

from calibtune.__main__ import main
from calibtune.demo import ALIGNED

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "hostile"
DATE = "2026-11-28T17-19-46.523566"
WORLD = ["--tasks", "mc_calib_world", "--device", "cpu", "--precision", "fp32"]
SMALL = ["--limit", "16", "--held-out", "4", "--max-steps", "1", "--batch-size", "4", "--rank", "2"]
FIT = ["fit", "--method", "cft", "--model", str(ALIGNED), *WORLD, *SMALL]
EVAL = ["eval", *WORLD, "--limit", "4", "--output", "out"]
ROWS = [{"instruction": f"q{i}", "output": "a", "generator": "m"} for i in range(3)]


def ends_well(words, capsys):
    """Whether a command ends in the result, or in one sentence and exit code 1 or 2; a traceback fails the test."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert code in (0, 1, 2)
    assert not code or "calibtune: error: " in said.splitlines()[-1] or "error: " in said
    return code


def put(case, *parts):
    """Copy a case to where a command looks for such a file."""
    target = Path(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(case, target)
    return target


@pytest.fixture(scope="session")
def adapter(tmp_path_factory):
    """An adapter on the demo's model, as a fit leaves it."""
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*FIT, "--output", "made"]) == 0
    return folder / "made"


def of_adapter(case, adapter, name):
    shutil.copytree(adapter, "made")
    put(case, "made", name)
    return [[*EVAL, "--artifact", "made"], ["merge", "--artifact", "made", "--output", "merged"]]


def of_model(case, adapter, name):
    shutil.copytree(ALIGNED, "model")
    put(case, "model", name)
    return [[*EVAL, "--model", "model", "--apply-chat-template"]]


def of_report(case, adapter, name):
    folder = write_run(Path("runs"), {"mc_calib_world": answers(20)}, date=DATE)
    put(case, folder, name)
    return [["report", "runs", "--output", "out", "--overwrite"]]


def of_guard(case, adapter, name):
    file = put(case, "base", f"samples_ultrafeedback_winrate_{DATE}.jsonl")
    tasks = ["--tasks", "ultrafeedback_winrate", "--output", "out"]
    return [["eval", "--model", ALIGNED, *tasks, "--guard", "winrate", "--guard-base", file.parent]]


def of_arena(case, adapter, name):
    data = Path("bench", "data", "arena-hard-v0.1")
    put(case, data, "model_judgment", "judge", "m.jsonl")
    rows = [{"uid": f"u{i}", "prompt": "p", "category": "c"} for i in range(3)]
    (data / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [["winrate", "arena-hard", "--bench", "bench", "--name", "m", "--output", "out"]]


def of_judge(case, adapter, name):
    """Answers from files, a judge that nobody runs, and a journal that lies there."""
    Path("instructions.json").write_text(json.dumps(ROWS))
    reference = put(case, "reference.json") if name == "reference.json" else Path("instructions.json")
    if name != "reference.json":
        put(case, "out", name)
    words = ["winrate", "alpaca-eval", "--model", ALIGNED, "--instructions", "instructions.json", "--judge", "j"]
    words += ["--reference", reference, "--judge-base-url", "http://127.0.0.1:9/v1", "--judge-retries", "0"]
    return [[*words, "--max-new-tokens", "2", "--device", "cpu", "--output", "out"]]


def of_resume(case, adapter, name):
    Path("out").mkdir()
    recipe = json.loads((adapter / "calibtune.json").read_text())["recipe"]
    Path("out", "started.json").write_text(json.dumps(recipe))
    put(case, "out", name)
    return [[*FIT, "--output", "out", "--resume"]]


def of_samples(case, adapter, name):
    file = put(case, "runs", name)
    fit = ["fit", "--method", "temperature", "--samples", file, "--output", "fitted"]
    return [["rescore", "runs"], ["report", "runs", "--output", "out"], fit]


SAMPLES, RESULTS = f"samples_mc_calib_world_{DATE}.jsonl", f"results_{DATE}.json"
READERS = {
    "adapter": (of_adapter, "adapter_config.json"),
    "eval_manifest": (of_adapter, "calibtune.json"),
    "merge_manifest": (of_adapter, "calibtune.json"),
    "model": (of_model, None),
    "report_manifest": (of_report, "calibtune.json"),
    "report_results": (of_report, RESULTS),
    "report_samples": (of_report, SAMPLES),
    "report_temp": (of_report, "temperature.json"),
    "report_ultra": (of_report, "results_2026-11-29T00-00-00.000000.json"),
    "report_win": (of_report, "winrate_alpaca_eval.json"),
    "rescore_results": (of_report, RESULTS),
    "rescore": (of_samples, SAMPLES),
    "fit_samples": (of_samples, SAMPLES),
    "guard": (of_guard, None),
    "arena": (of_arena, None),
    "journal": (of_judge, "judgments.jsonl"),
    "outputs": (of_judge, "reference.json"),
    "checkpoint": (of_resume, "checkpoints/checkpoint-10/whole.json"),
    "resume_manifest": (of_resume, None),
    "annotations": (lambda case, *_: [["winrate", "alpaca-eval", "--annotations", case, "--output", "out"]], None),
    "recipe": (lambda case, *_: [["fit", "--config", case, "--output", "out"]], None),
}


@pytest.mark.real
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", sorted(os.listdir(CASES)) if CASES.is_dir() else [])
def test_mutated_file_ends_in_the_result_or_one_sentence(name, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    case = CASES / name
    if case.is_dir():
        shutil.copytree(case, "runs")
        lines = [["rescore", "runs"], ["report", "runs", "--output", "out"], [*EVAL, "--artifact", "runs"]]
    else:
        reader, _, rest = name.partition("-")
        make, where = READERS[reader]
        lines = make(case, adapter, where or rest.partition("-")[2])
    for words in lines:
        ends_well(words, capsys)
