"""Command lines in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

from quick_python import OFFLINE, quick_python


def offline(cache):
    """Return the environment of a command that downloads nothing and has a cache of data sets of its own."""
    return {**os.environ, **OFFLINE, "HF_DATASETS_CACHE": str(cache)}


def path_of_python():
    """Return a PATH on which `python` is :func:`quick_python`, for scripts of a shell."""
    return os.pathsep.join([str(Path(quick_python()).parent), str(Path(sys.executable).parent), os.environ["PATH"]])


def run_command(folder, cache, *arguments):
    command = [quick_python(), "-m", "lm_eval", "run", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=offline(cache), capture_output=True, text=True, timeout=300)


def shell(arguments, cwd, python=None, **options):
    environment = offline(cwd / "cache-of-commands")
    return subprocess.Popen(
        [python or quick_python(), *map(str, arguments)], cwd=cwd, env=environment, text=True, **options
    )
