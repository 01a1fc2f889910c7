import argparse
import re
import subprocess
import sys
import types

import pytest

from calibtune import __main__, __version__
from calibtune.errors import UserError, WorkFailed
from harness_ext.errors import ScoringError

HEAVY = {"torch", "lm_eval", "transformers", "datasets", "peft", "scipy", "matplotlib", "sklearn"}


def run(*arguments):
    command = [sys.executable, "-m", "calibtune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def command(monkeypatch):
    """Adds the command ``probe``, whose ``run`` is set by the test."""

    def add(behave):
        module = types.ModuleType("calibtune.commands.probe", "What probe does.")
        module.add_arguments = lambda parser: parser.add_argument("--n", type=int, default=0)
        module.run = behave
        monkeypatch.setitem(sys.modules, "calibtune.commands.probe", module)
        monkeypatch.setitem(__main__.COMMANDS, "probe", "a command of this test")
        return __main__.main

    return add


def raising(error):
    def behave(args: argparse.Namespace) -> int:
        raise error

    return behave


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--n 3: give 4"), 2, "calibtune: error: --n 3: give 4\n"),
        (WorkFailed("the disk is full"), 1, "calibtune: error: the disk is full\n"),
        (ScoringError("row 1 is bad"), 2, "calibtune: error: row 1 is bad\n"),
        (KeyboardInterrupt(), 130, "calibtune: interrupted\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(command, capsys, error, code, line):
    assert command(raising(error))(["probe"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


def test_a_fault_of_ours_keeps_its_traceback(command):
    with pytest.raises(ZeroDivisionError):
        command(raising(ZeroDivisionError()))(["probe"])


def test_a_command_gets_its_arguments_and_its_code_is_returned(command):
    main = command(lambda args: args.n)
    assert main(["probe", "--n", "7"]) == 7
    assert main(["probe"]) == 0


def test_help_lists_every_command_and_loads_none(tmp_path):
    code = (
        "import sys; from calibtune.__main__ import main\n"
        "try:\n    main(['--help'])\n"
        f"finally:\n    print('LOADED', sorted({HEAVY!r} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0
    assert "LOADED []" in found.stdout
    for name, text in __main__.COMMANDS.items():
        assert re.search(rf"^    {name} +{re.escape(text.split()[0])}", found.stdout, re.MULTILINE), name


@pytest.mark.parametrize("name", sorted(__main__.COMMANDS))
def test_each_commands_help_opens_with_what_it_does_and_loads_no_torch(name):
    code = (
        "import sys; from calibtune.__main__ import main\n"
        f"try:\n    main([{name!r}, '--help'])\n"
        "finally:\n    print('LOADED', sorted({'torch', 'transformers', 'lm_eval'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert f"usage: python -m calibtune {name}" in found.stdout
    assert "LOADED []" in found.stdout


def test_an_unknown_command_or_flag_is_misuse():
    for arguments in (["resore"], ["rescore", "x", "--bin-s", "3"], []):
        found = run(*arguments)
        assert found.returncode == 2
        assert found.stdout == ""
        assert "Traceback" not in found.stderr
    assert "invalid choice: 'resore'" in run("resore").stderr


def test_the_version_is_the_packages():
    found = run("--version")
    assert (found.returncode, found.stdout) == (0, f"calibtune {__version__}\n")
