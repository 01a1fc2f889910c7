"""lm_eval's ``simple_evaluate`` without what it does besides evaluating.

It runs a dozen programs to describe the machine (``pip list``, ``lscpu`` and others, seconds on a busy one), lets git
complain about folders that are no repository, and shows a first estimate of hours for a run of a minute. It has no
switch for any of these, so the functions are replaced by name while it runs; ``tests/evaluation/test_harness.py`` fails
when a new version renames one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.task import Task
from lm_eval.loggers.utils import get_commit_from_path

from calibtune.bar import Bar


def quiet_evaluate(**arguments: Any) -> Any:
    """Call ``lm_eval.simple_evaluate`` with the replacements of :func:`replaced`; arguments and result are its."""
    with replaced(REPLACED):
        return simple_evaluate(**arguments)


def environment_info(results: dict[str, Any]) -> None:
    """Add lm_eval's keys about the environment to its results, without running a program."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        platform.platform(),
        f"GPUs: {', '.join(gpus) or 'none'}",
    ]
    results["pretty_env_info"] = "\n".join(lines)
    results["transformers_version"] = importlib.metadata.version("transformers")
    results["lm_eval_version"] = importlib.metadata.version("lm_eval")
    results["upper_git_hash"] = get_commit_from_path(Path(os.getcwd(), ".."))


def commit() -> str | None:
    """Return the working directory's commit as lm_eval names it, None where it is no repository; git stays silent."""
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        return None
    try:
        found = subprocess.run(["git", "describe", "--always"], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        hashed = get_commit_from_path(os.getcwd())
        return None if hashed is None else str(hashed)
    return found.stdout.strip()


#: What :func:`quiet_evaluate` replaces.
REPLACED: dict[tuple[str, str], Any] = {
    ("lm_eval.evaluator", "add_env_info"): environment_info,
    ("lm_eval.evaluator", "get_git_commit_hash"): commit,
    (Task.__module__, "tqdm"): Bar,
    ("lm_eval.api.model", "tqdm"): Bar,
    ("lm_eval.models.huggingface", "tqdm"): Bar,
}


@contextlib.contextmanager
def replaced(functions: Mapping[tuple[str, str], Any]) -> Iterator[None]:
    """Replace lm_eval's functions by ours until the block ends; a name that it no longer has is left alone.

    Args:
        functions: Module and name of what is replaced, and by what.
    """
    with contextlib.ExitStack() as stack:
        for (module_name, name), ours in functions.items():
            module = importlib.import_module(module_name)
            if hasattr(module, name):
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, ours)
        yield
