"""One command at a time writes into a folder, and the next one clears away what a killed one left."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from report_files import two_runs

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.files import LOCK, replacing
from calibtune.locks import held

HOLD = """
import sys, time
from pathlib import Path
from calibtune.files import replacing
from calibtune.locks import held
with held(Path(sys.argv[1])), replacing(Path(sys.argv[1], "figures", "x.svg")) as file:
    file.write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path / "out"`` and is in the middle of writing a file there."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


COMMANDS = {
    "report": ["report", "base", "--output", "out"],
    "report that overwrites": ["report", "base", "--output", "out", "--overwrite"],
    "fit": ["fit", "--method", "temperature", "--samples", "base", "--output", "out"],
    "fit that resumes": ["fit", "--method", "temperature", "--samples", "base", "--output", "out", "--resume"],
    "eval": ["eval", "--model", "m", "--tasks", "mc_calib_arc", "--output", "out"],
    "merge": ["merge", "--artifact", "base", "--output", "out"],
    "bake": ["bake", "--artifact", "base", "--output", "out"],
    "demo": ["demo", "--output", "out"],
    "demo that rebuilds": ["demo", "--rebuild", "--output", "out"],
    "winrate alpaca-eval": ["winrate", "alpaca-eval", "--annotations", "base", "--output", "out"],
    "winrate arena-hard": ["winrate", "arena-hard", "--bench", "base", "--name", "m", "--output", "out"],
}


def test_second_command_says_who_holds_the_folder(holder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, words in COMMANDS.items():
        assert main(words) == 2, name
        said = capsys.readouterr().err
        assert f"--output out is being written by another command (process {holder.pid} on " in said, name
        assert f"{socket.gethostname()}, since 2" in said, name
    assert holder.poll() is None
    assert [path.read_text() for path in Path("out", "figures").iterdir()] == ["half"]


def test_next_run_removes_the_files_of_a_killed_one_and_leaves_no_lock(holder, tmp_path):
    base, _ = two_runs(tmp_path)
    holder.kill()
    holder.wait()
    assert (tmp_path / "out" / LOCK).is_file()
    assert main(["report", str(base), "--output", str(tmp_path / "out")]) == 0
    left = [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".") or path.name == "x.svg"]
    assert left == []
    assert (tmp_path / "out" / "report.html").is_file()


def test_folder_below_that_another_command_holds_is_left_alone(holder, tmp_path):
    with held(tmp_path):
        pass
    assert [path.read_text() for path in (tmp_path / "out" / "figures").iterdir()] == ["half"]


def test_folder_that_stays_empty_is_removed_with_those_made_above_it(tmp_path):
    with held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a" / "b"), replacing(tmp_path / "a" / "b" / "x") as file:
        file.write_text("1")
    assert os.listdir(tmp_path / "a" / "b") == ["x"]


def test_lock_whose_file_says_nothing_is_still_a_lock(holder, tmp_path):
    (tmp_path / "out" / LOCK).write_text("[" * 2000)
    with pytest.raises(UserError, match="is being written by another command; wait for it"), held(tmp_path / "out"):
        pass


def test_other_processes_of_one_command_take_no_lock(tmp_path, monkeypatch):
    with held(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with held(tmp_path):
            pass
        assert (tmp_path / LOCK).is_file()
