import argparse
import logging
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from calibtune import __main__, __version__
from calibtune.errors import UserError, WorkFailed

HEAVY = {"torch", "lm_eval", "transformers", "datasets", "peft", "scipy", "matplotlib", "sklearn"}


def run(*arguments):
    command = [sys.executable, "-m", "calibtune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


#: A process whose command ends as the test says, with something that Python's search for garbage at the end would find.
PROCESS = """
import atexit, sys
from calibtune import __main__
class Found:
    def __del__(self):
        print("searched")
found = Found()
found.itself = found
def main():
    atexit.register(print, "a library's end")
    global found
    del found
    {}
__main__.main = main
__main__.command()
"""


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        ("return 0", 0, ""),
        ("return 1", 1, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit()", 0, ""),
        ("raise KeyboardInterrupt", 130, "calibtune: interrupted\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_a_process_ends_with_its_code_and_what_libraries_do_at_the_end_but_without_a_search(last, code, said):
    command = [sys.executable, "-c", PROCESS.format(last)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=buffered)
    assert ended.returncode == code
    assert ended.stdout == "a library's end\n"
    assert said in ended.stderr
    assert bool(said) == bool(ended.stderr)


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
        (UserError("row 1 is bad"), 2, "calibtune: error: row 1 is bad\n"),
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
        assert re.search(rf"^    {name}\s+{re.escape(text.split()[0])}", found.stdout, re.MULTILINE), name


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


def test_sigterm_ends_a_command_like_ctrl_c_with_its_own_code(command, capsys):
    main = command(lambda args: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5) or 0)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["probe"]) == 143
    assert capsys.readouterr().err == "calibtune: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_says_how_to_go_on_where_a_command_can(command, capsys, monkeypatch):
    main = command(raising(KeyboardInterrupt()))
    monkeypatch.setattr(sys.modules["calibtune.commands.probe"], "go_on", lambda args: "do it again", raising=False)
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == "calibtune: interrupted; do it again\n"
    from calibtune.commands import demo, eval

    assert "goes on" in demo.go_on(None)
    assert "begins anew" in eval.go_on(argparse.Namespace(backend="hf"))
    assert "replies are kept" in eval.go_on(argparse.Namespace(backend="api"))


def test_with_json_only_json_goes_to_stdout(command, capsys, monkeypatch):
    def behave(args):
        print("a library's remark")
        logging.getLogger("calibtune.probe").info("a line of ours")
        print("{}", file=args.stdout)
        return 0

    main = command(behave)
    module = sys.modules["calibtune.commands.probe"]
    monkeypatch.setattr(module, "add_arguments", lambda parser: parser.add_argument("--json", action="store_true"))
    assert main(["probe", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    assert "a library's remark" in captured.err
    assert "a line of ours" in captured.err


@pytest.mark.slow
def test_eval_and_a_temperature_load_neither_peft_nor_bitsandbytes_and_say_a_line_first(model, mirror):
    common = ["--model", str(model), "--tasks", "mc_calib_arc", "--device", "cpu", "--precision", "fp32"]
    commands = [
        [*words, *common, "--output", f"out-{words[0]}"]
        for words in (["eval", "--limit", "4"], ["fit", "--method", "temperature"])
    ]
    code = (
        "import sys; from calibtune.__main__ import main\n"
        f"for words in {commands!r}:\n"
        "    print('BEGIN'); code = main(words)\n"
        "    print('LOADED', code, sorted({'peft', 'bitsandbytes'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert found.stdout.count("LOADED 0 []") == 2, found.stderr
    assert all(said.split("\n")[1].endswith("; starting") for said in found.stdout.split("BEGIN")[1:])
    assert "fatal" not in found.stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["fit", "--lamda", "3"], "--lambda"), (["eval", "--modell", "m", "--tasks", "t", "--output", "o"], "--model")],
)
def test_mistyped_flag_gets_the_one_that_was_meant(words, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        __main__.main(words)
    assert stop.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err
