import multiprocessing
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import calibtune.demo.parallel as parallel
from calibtune.processes import Terminated


def write_number(command, number):
    """Replace a command: write its number into its folder, in a subprocess."""
    folder = Path(parallel.output_of(command))
    folder.mkdir()
    (folder / "number").write_text(str(number))


def stop(command, number):
    sys.exit(143)


def chain(tmp_path):
    a, b, c = (str(tmp_path / name) for name in "abc")
    return [["eval", "--output", a], ["fit", "--artifact", a, "--output", b], ["report", a, b, "--output", c]]


def test_command_waits_for_its_inputs_and_runs_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "PRELOAD", [])
    commands = chain(tmp_path)
    assert list(parallel.run_all(commands, parallel.Journal(tmp_path), write_number)) == commands
    assert [(tmp_path / name / "number").read_text() for name in "abc"] == ["0", "1", "2"]
    assert list(parallel.run_all(commands, parallel.Journal(tmp_path), write_number)) == []
    shutil.rmtree(tmp_path / "c")
    assert list(parallel.run_all(commands, parallel.Journal(tmp_path), write_number)) == commands[2:]


def test_terminated_command_is_not_marked_done(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "PRELOAD", [])
    with pytest.raises(Terminated):
        list(parallel.run_all(chain(tmp_path), parallel.Journal(tmp_path), stop))
    assert not parallel.Journal(tmp_path).commands


def test_an_interruption_while_a_command_is_being_started_is_no_other_error(tmp_path, monkeypatch):
    class Interrupted(multiprocessing.get_context("spawn").Process):
        def start(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "from_a_server", lambda _: SimpleNamespace(Process=Interrupted))
    with pytest.raises(KeyboardInterrupt):
        list(parallel.run_all(chain(tmp_path), parallel.Journal(tmp_path), write_number))


def test_interrupted_fit_resumes_and_evaluation_restarts(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    evaluation, fit, _ = chain(tmp_path)
    assert parallel.resumed(fit) == [*fit, "--resume"]
    assert (tmp_path / "b").is_dir()
    assert parallel.resumed(evaluation) == evaluation
    assert not (tmp_path / "a").exists()


def test_preloaded_modules_exist():
    import importlib.util

    from calibtune.demo import preload

    assert all(importlib.util.find_spec(name) for name in (*parallel.PRELOAD, *preload.MODULES))
