"""Calls in several processes, as a caller of one process sees them, and reports that are made so."""

import functools
import logging
import math
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from lm_eval_files import answers, write_run
from report_files import report

import calibtune
from calibtune.api import MANY_FILES
from calibtune.errors import WorkFailed
from calibtune.parallel import from_a_server, mapping
from calibtune.results.samples import find_samples

#: For tests that look at processes.
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
SLEEPING = """
import os, signal, time
from calibtune.parallel import mapping

# Programs that a script starts in the background ignore Ctrl-C from the beginning.
signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    with mapping(2, []) as mapped:
        print(*mapped(os.readlink, ["/proc/self"] * 4), flush=True)
        list(mapped(time.sleep, [60, 60]))
"""


@linux
def test_results_come_in_order_and_from_other_processes():
    with mapping(2, []) as mapped:
        assert list(mapped(math.sqrt, [16, 9, 4, 1])) == [4, 3, 2, 1]
        assert str(os.getpid()) not in set(mapped(os.readlink, ["/proc/self"] * 4))
    with mapping(1, []) as mapped:
        assert set(mapped(os.readlink, ["/proc/self"] * 4)) == {str(os.getpid())}


def test_what_the_calls_log_is_logged_here_in_order(caplog):
    with mapping(2, []) as mapped:
        list(mapped(logging.getLogger("harness_ext.x").warning, ["one", "two", "three"]))
    assert caplog.record_tuples == [("harness_ext.x", logging.WARNING, text) for text in ("one", "two", "three")]


def test_an_error_of_a_call_is_raised_here():
    with mapping(2, []) as mapped, pytest.raises(ZeroDivisionError):
        list(mapped(functools.partial(operator.truediv, 1), [1, 0, 2]))


def test_a_killed_process_is_told_and_not_waited_for():
    with pytest.raises(WorkFailed, match="ended early"), mapping(2, []) as mapped:
        list(mapped(os._exit, [9, 9]))


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_end_with_the_first_one_however_it_ends(tmp_path, number):
    (tmp_path / "script.py").write_text(SLEEPING)
    script = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    script.stdout.readline()
    # The server, what cleans up after it, and the processes that the server forked.
    others = psutil.Process(script.pid).children(recursive=True)
    assert len(others) >= 3
    script.send_signal(number)
    script.communicate()
    _, left = psutil.wait_procs(others, timeout=10)
    assert left == []


@linux
def test_ctrl_c_is_answered_by_the_first_process_alone(tmp_path):
    (tmp_path / "script.py").write_text(SLEEPING.replace("60, 60", "1, 1"))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    script = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, start_new_session=True, **streams)
    script.stdout.readline()
    os.killpg(script.pid, signal.SIGINT)
    _, errors = script.communicate(timeout=60)
    assert script.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1


@linux
def test_a_server_that_is_still_importing_ignores_ctrl_c(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(2)")
    (tmp_path / "script.py").write_text(SLEEPING.replace("(2, [])", "(2, ['slow'])").replace("60, 60", ".1"))
    script = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    me = psutil.Process(script.pid)
    end = time.monotonic() + 60
    while not (servers := [each for each in me.children() if "forkserver" in " ".join(each.cmdline())]):
        assert time.monotonic() < end
        time.sleep(0.02)
    servers[0].send_signal(signal.SIGINT)
    printed, errors = script.communicate(timeout=60)
    assert (script.returncode, errors) == (0, "")
    assert len(printed.split()) == 4


def squares(arguments):
    with mapping(2, []) as mapped:
        return list(mapped(math.sqrt, arguments))


def test_where_no_process_can_be_started_this_one_does_the_work(monkeypatch, tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(squares, [[4, 9]]) == [2, 3]

    def none(*_):
        raise NotImplementedError("no semaphores")

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", none)
    assert squares([4, 9]) == [2, 3]


@linux
def test_a_temporary_folder_with_a_long_name_is_no_obstacle(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    (tmp_path / "script.py").write_text(SLEEPING.replace("60, 60", ".1"))
    environment = {**os.environ, "TMPDIR": str(long)}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 4


def test_a_script_without_a_main_guard_is_told_in_a_sentence(tmp_path):
    (tmp_path / "script.py").write_text(
        "from calibtune.parallel import mapping\nwith mapping(2, []) as mapped:\n    list(mapped(len, ['a', 'b']))\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "WorkFailed: a process that reads or draws ended early" in done.stderr


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Two runs of a group of tasks, which is one in the figures."""
    folder = tmp_path_factory.mktemp("many")
    names = [f"subject-{number}" for number in range(MANY_FILES // 2 + 1)]
    for label, sharpness in (("base", 3.0), ("cft", 1.0)):
        tasks = {task: answers(20, sharpness=sharpness, seed=seed) for seed, task in enumerate(names)}
        write_run(folder / label, tasks, {"pretrained": f"org/{label}"}, groups={"mmlu": names})
    return [folder / "base", folder / "cft"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("page", ["report", "regime"])
def test_a_page_from_several_processes_has_the_same_bytes(many, tmp_path, page):
    steps = {1: [], 2: []}
    for processes in steps:
        getattr(calibtune, page)(many, tmp_path / str(processes), step=steps[processes].append, processes=processes)
    assert steps[1] == steps[2]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_report_of_few_files_starts_no_process(many, tmp_path, monkeypatch):
    def started(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr("calibtune.parallel.from_a_server", started)
    calibtune.report(many[:1], tmp_path / "few", processes=2)
    with pytest.raises(AssertionError, match="a process was started"):
        calibtune.report(many, tmp_path / "many", processes=2)


def test_warnings_and_refusals_of_files_read_in_other_processes_are_those_of_one(tmp_path, capsys, monkeypatch):
    started = []
    monkeypatch.setattr("calibtune.parallel.cores", lambda: 2)
    monkeypatch.setattr("calibtune.parallel.from_a_server", lambda names: started.append(names) or from_a_server(names))
    folder = tmp_path / "run"
    # Rounded as bfloat16 does: two letters of half of the questions are tied.
    tied = [[max(row), max(row), *row[2:]] if number % 2 else row for number, row in enumerate(answers(10)[0])]
    names = [f"subject-{number:02d}" for number in range(MANY_FILES)]
    write_run(folder, {task: (tied, answers(10)[1]) for task in names}, groups={"mmlu": names})
    assert report(folder, "--output", tmp_path / "out") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "5 of 10 questions have letters tied" in line]
    assert [name in line for name, line in zip(names, said, strict=True)] == [True] * MANY_FILES
    assert all(line.startswith("warning: ") for line in said)
    assert started == [["calibtune.reporting.write"]]
    path = find_samples(folder)[0]
    path.write_text(path.read_text()[:-30])
    assert report(folder, "--output", tmp_path / "again") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert str(path) in line
    assert "line 10 is not JSON" in line


@linux
def test_a_process_that_is_forked_after_the_first_one_has_ended_ends_at_once(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(2)")
    (tmp_path / "script.py").write_text(
        "import time\n"
        "from calibtune.parallel import end_with_parent, from_a_server\n"
        "def work():\n    end_with_parent()\n    time.sleep(30)\n"
        "if __name__ == '__main__':\n    from_a_server(['slow']).Process(target=work).start()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    script = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environment, start_new_session=True)
    end = time.monotonic() + 60
    while len(others := psutil.Process(script.pid).children()) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    # Asked for, while the server is still importing.
    time.sleep(0.5)
    script.kill()
    script.wait()
    _, left = psutil.wait_procs(others, timeout=15)
    assert left == []
