"""Command lines in processes of their own."""

import os
import subprocess
import sys


def run_command(folder, cache, *arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(cache)
    command = [sys.executable, "-m", "lm_eval", "run", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def shell(arguments, cwd, **options):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_CACHE": str(cwd / "cache-of-commands"),
    }
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, text=True, **options)
