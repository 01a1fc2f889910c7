"""A tiny model is mended by the real commands."""

import json
import re
import sys

import pytest
from harness import enter_mirror
from quick_python import OFFLINE, quick_python
from tiny import write_paper_mirror

from calibtune import steps
from calibtune.__main__ import main
from calibtune.artifacts.manifest import read_artifact


@pytest.fixture
def command(model, tmp_path, monkeypatch):
    hub = enter_mirror(write_paper_mirror(tmp_path / "hub", rows=40), monkeypatch)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(hub / "cache"))
    monkeypatch.chdir(hub)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    # Its steps are processes.
    monkeypatch.setattr(sys, "executable", quick_python())

    def run(*words):
        questions = () if "--data" in words else ("--tasks", "mc_calib_arc", "--out-tasks", "mc_calib_openbookqa")
        given = ["--model", str(model), *questions, "--limit", "8", "--output", str(tmp_path / "out")]
        return main(["mend", *given, *words])

    return run


def quiz(path):
    """Write questions of which a third have B as their answer."""
    rows = [{"question": f"Number {i}?", "choices": [f"x {i}", f"y {i}"], "answer": int(i % 3 == 0)} for i in range(99)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_a_small_budget_gives_a_temperature_and_nothing_runs_twice(command, tmp_path, capfd, monkeypatch):
    from calibtune.mending import run

    monkeypatch.setattr(run, "looks_calibrated", lambda _: False)
    words = ("--data", str(quiz(tmp_path / "quiz.jsonl")), "--budget", "0")
    assert command(*words) == 0
    told = capfd.readouterr().out
    found = json.loads((tmp_path / "out" / "mend.json").read_text())
    assert found["recommendation"] in ("leave it", "temperature")
    assert set(found["held_out"]) == {"base", "temperature"}
    assert not (tmp_path / "out" / "orders").exists()
    assert found["sentences"][0] in told
    assert re.fullmatch(r"\S+: \d+ % sure, \d+ % right on \w+(; after .+)?\.", found["sentences"][0])
    assert found["sentences"][-1].startswith("No adapter was trained: it takes about ")
    assert found["held_out"]["base"] == read_artifact(tmp_path / "out" / "temperature").before["nll"]
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    assert command(*words) == 0
    assert "$ python -m calibtune fit" not in capfd.readouterr().out


@pytest.mark.slow
def test_an_adapter_that_wins_is_measured_and_its_win_rate_guarded(command, tmp_path, capfd, monkeypatch):
    from calibtune.mending import run

    small = ("--epochs", "1", "--batch-size", "4", "--rank", "2", "--precision", "fp32")

    def small_step(step):
        trained = step.words[:3] == ("fit", "--method", "auto")
        return run_step(steps.Step(step.name, (*step.words, *(small if trained else ())), step.output, step.tasks))

    run_step = run.run_step
    monkeypatch.setattr(run, "run_step", small_step)
    monkeypatch.setattr(run, "COUNTS", (2, 1))
    monkeypatch.setattr(run, "looks_calibrated", lambda _: False)
    monkeypatch.setattr(run, "best", lambda found: next((c for c in found if c.name == "adapter-orders"), found[0]))
    assert command("--budget", "1000", "--orders", "2") == 0
    out = tmp_path / "out"
    found = json.loads((out / "mend.json").read_text())
    names = ["base", "temperature", "adapter", "adapter-temperature", "orders", "adapter-orders"]
    assert set(found["held_out"]) == set(names)
    # All are measured on the questions that the adapter held out.
    adapter, *others = (read_artifact(out / name) for name in ("auto", "temperature-compared", "orders", names[-1]))
    for other in others:
        assert set(adapter.documents["held_out"]) == set(other.documents["held_out"])
    assert any(sentence.startswith("On preference pairs: win rate ") for sentence in found["sentences"])
    assert found["recommendation"] in ("adapter-orders", "leave it")
    if found["recommendation"] == "adapter-orders":
        assert (found["artifact"], others[-1].orders) == ("adapter-orders", 2)
        assert any("as many passes of the model as it has options, at most 2" in each for each in found["sentences"])


@pytest.mark.slow
def test_a_model_that_cannot_be_told_from_calibrated_is_left_as_it_is(command, tmp_path, monkeypatch, capfd):
    from calibtune.mending import run

    monkeypatch.setattr(run, "looks_calibrated", lambda _: True)
    assert command() == 0
    found = json.loads((tmp_path / "out" / "mend.json").read_text())
    assert (found["recommendation"], found["artifact"]) == ("leave it", None)
    assert any("it cannot be told from calibrated (T " in sentence for sentence in found["sentences"])
    assert any('; p-value of "calibrated" ' in sentence for sentence in found["sentences"])
    assert not (tmp_path / "out" / "auto").exists()
    assert set(found["numbers"]) == {"mc_calib_arc", "mc_calib_openbookqa"}


def test_a_budget_that_is_no_number_is_refused(command, capsys):
    assert command("--budget", "-1") == 2
    assert "--budget is -1; give minutes, 0 or more" in capsys.readouterr().err
