"""Where a command's output goes: pipes that close, full disks, terminals that know ASCII alone."""

import os
import subprocess
import sys

import pytest
from lm_eval_files import answers, write_run

from calibtune.__main__ import main


def shell(line, **environment):
    environment = {**os.environ, "python": sys.executable, "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Make results of tasks whose names are not ASCII."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "out", {f"tâche-{n}-{'x' * 100}": answers(5) for n in range(2)})
    return tmp_path


def test_rescore_ends_in_silence_where_its_reader_has_enough(runs):
    # More than a pipe and its reader hold.
    write_run(runs / "many", {f"tâche-{n}-{'x' * 100}": answers(5) for n in range(80)})
    found = shell("$python -m calibtune rescore many | head -1; echo ${PIPESTATUS[0]}")
    assert found.stderr == ""
    first, code = found.stdout.splitlines()
    assert "tâche-" in first
    assert code == "1"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "words", ["rescore out", "rescore out --json", pytest.param("report out --output r", marks=pytest.mark.slow)]
)
def test_full_disk_under_stdout_is_one_sentence(runs, words):
    found = shell(f"$python -m calibtune {words} > /dev/full")
    assert found.returncode == 1
    said = found.stderr.splitlines()[-1]
    assert said == "calibtune: error: standard output cannot be written or read: No space left on device"
    assert "Traceback" not in found.stderr
    assert "Exception" not in found.stderr


def test_terminal_that_knows_ascii_alone_gets_other_signs_as_their_numbers(runs):
    found = shell("$python -m calibtune rescore out", PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stderr) == (0, "")
    assert "t\\xe2che-0" in found.stdout


@pytest.mark.parametrize(
    "words",
    [["rescore", "x" * 5000], ["report", "x" * 5000, "--output", "r"], ["report", "out", "--output", "x" * 5000]],
)
def test_names_of_5000_characters_are_one_sentence(runs, words, capsys):
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert "File name too long" in said
    assert said.count("\n") == 1
