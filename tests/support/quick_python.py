"""A python whose processes are forked from one that has imported torch, transformers, lm_eval and peft.

Importing those takes longer than what most tests of command lines do. A process that is forked is one of its own: it
has its own number, environment, folder, signals and end. Where its environment differs in what libraries read when they
are imported, or it runs something else than the commands below, it is the ordinary python. Processes that it starts
with ``sys.executable`` are forked too.
"""

import array
import atexit
import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

#: What libraries read from the environment when they are imported, without what :func:`become` sets in them.
READ_AT_IMPORT = ("CUDA_", "HF_MODULES_", "MPL", "OMP_NUM", "PYTHON", "TOKENIZERS_", "TRANSFORMERS_")
#: What the tests' commands have.
OFFLINE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
MODULES = ("calibtune", "lm_eval", "torch.distributed.run", "accelerate.commands.launch")
IMPORTED = (
    "calibtune.demo.preload",
    "calibtune.api",
    "calibtune.reporting.write",
    "torch.distributed.run",
    "accelerate.commands.launch",
    "lm_eval.models.huggingface",
    "lm_eval.loggers",
)


def shared_folder() -> Path:
    """Return a folder of all processes of a run of the tests; for one process alone, a folder of its own."""
    if folder := os.environ.get("CALIBTUNE_TESTS"):
        return Path(folder)
    own = tempfile.mkdtemp(prefix="quick-python-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


@functools.cache
def quick_python() -> str:
    """Return the program, which is the ordinary one where a process cannot be watched as this needs."""
    from filelock import FileLock

    if not hasattr(os, "pidfd_open"):
        return sys.executable
    folder = shared_folder()
    program, socket_file = folder / "python", folder / "socket"
    with FileLock(folder / "quick-python.lock"):
        if not program.exists():
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(socket_file))
                listener.listen()
                start(listener.fileno(), folder)
            line = f'exec "{sys.executable}" -ISsu "{__file__}" "{socket_file}" "{sys.executable}" "$0" "$@"'
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)
    return str(program)


def start(listener: int, folder: Path) -> None:
    """Start the server, which ends when the run of the tests does: this process, or the one whose worker it is."""
    owner = os.pidfd_open(os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid())
    subprocess.Popen(
        [sys.executable, __file__, "serve", str(listener), str(owner), str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[listener, owner],
        env={**os.environ, **OFFLINE},
    )  # fmt: skip
    os.close(owner)


def ask(path, real, program, words):
    """Have a command run by the server and end as it ends; without one, become the ordinary python."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        asked = {"words": words, "env": dict(os.environ), "cwd": os.getcwd(), "program": program}
        data = json.dumps(asked).encode()
        fds = array.array("i", [0, 1, 2])
        server.sendmsg([struct.pack("I", len(data))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        server.sendall(data)
        (pid,) = struct.unpack("i", server.recv(4))
        if not pid:
            os.execv(real, [real, *words])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        (code,) = struct.unpack("i", server.recv(4))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def fixed(environment):
    """Return what of an environment must be as it was when the libraries were imported."""
    return {k: v for k, v in environment.items() if k.startswith(READ_AT_IMPORT)}


def parsed(words):
    """Return module, file and arguments of a command line that is run here, or None."""
    words = words[1:] if words[:1] == ["-u"] else words
    if words[:1] == ["-m"]:
        return (words[1], None, words[2:]) if words[1] in MODULES else None
    return (None, words[0], words[1:]) if words and words[0].endswith(".py") else None


def received(connection):
    """Return what a client asks and the files that are its standard ones."""
    head, fds, _, _ = socket.recv_fds(connection, 4, 3)
    (size,) = struct.unpack("I", head)
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return json.loads(data), fds


def serve(listener, owner, own):
    """Fork a process for each command until the owner ends; return what is asked in each of those."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    selector.register(owner, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.fileobj == owner:
                os._exit(0)
            if key.fileobj is not listener:
                pid, connection, pidfd = key.data
                if key.fileobj is connection:
                    # Who asked is gone, killed perhaps.
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    selector.unregister(connection)
                    continue
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                selector.unregister(pidfd)
                os.close(pidfd)
                if connection in selector.get_map():
                    selector.unregister(connection)
                    connection.sendall(struct.pack("i", code))
                connection.close()
                continue
            connection, _ = listener.accept()
            asked, fds = received(connection)
            if fixed(asked["env"]) != own or parsed(asked["words"]) is None:
                connection.sendall(struct.pack("i", 0))
                connection.close()
            elif pid := os.fork():
                connection.sendall(struct.pack("i", pid))
                pidfd = os.pidfd_open(pid)
                for each in (connection, pidfd):
                    selector.register(each, selectors.EVENT_READ, (pid, connection, pidfd))
            else:
                for number, fd in enumerate(fds):
                    os.dup2(fd, number)
                selector.close()
                os.closerange(3, max(*fds, connection.fileno(), listener.fileno(), 64) + 1)
                return asked
            for fd in fds:
                os.close(fd)


def become(asked):
    """Take over folder, environment and arguments of a command, and return how to run it."""
    import importlib
    import runpy

    import datasets.config
    import huggingface_hub as hub
    import lm_eval.caching.cache as requests

    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    for module in (hub.constants, datasets.config):
        importlib.reload(module)
    hub.hf_api.api.endpoint = hub.constants.ENDPOINT
    if cache := os.environ.get("LM_HARNESS_CACHE_PATH"):
        requests.PATH = cache
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = sys.__stdin__ = os.fdopen(0)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w")
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.executable = asked["program"]
    module, file, arguments = parsed(asked["words"])
    sys.argv = [file or module, *arguments]
    sys.path[0] = str(Path(file).parent) if file else os.getcwd()
    if file:
        return functools.partial(runpy.run_path, file, run_name="__main__")
    sys.modules.pop(f"{module}.__main__", None)
    return functools.partial(runpy.run_module, module, run_name="__main__", alter_sys=True)


def end(run):
    """Run a command and end as Python does, without the seconds in which it frees what is imported.

    What is left unwritten in open files is lost.
    """
    code = 0
    try:
        run()
    except KeyboardInterrupt:
        raise
    except SystemExit as asked:
        code = 0 if asked.code is None else asked.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, AttributeError):  # closed, or none
            stream.flush()
    os._exit(code)


def import_all(folder):
    """Import what the commands need, and index the harness's thousands of task files, each for the first that asks."""
    import gc
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    from lm_eval.tasks import TaskManager, _index
    from task_files import read_once
    from torch.utils import collect_env

    read_once(folder)
    read, known = _index.load_yaml, {}

    def noted(path, **options):
        known[(path, *options.items())] = found = read(path, **options)
        return found

    _index.load_yaml = noted
    TaskManager()
    _index.load_yaml = lambda path, **options: known.pop((path, *options.items()), None) or read(path, **options)
    # The harness lists all packages with pip after each evaluation.
    packages = collect_env.get_pip_packages(collect_env.run)
    collect_env.get_pip_packages = lambda *_: packages
    gc.freeze()


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        ask(*sys.argv[1:4], sys.argv[4:])
    listener, owner, folder = sys.argv[2:]
    given = fixed(os.environ)
    import_all(Path(folder))
    end(become(serve(socket.socket(fileno=int(listener)), int(owner), given)))
