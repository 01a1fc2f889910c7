"""Processor time of a command beside that of plain figures: on a busy or slow machine both take twice as long."""

import os
import resource
import subprocess
import sys

#: Draws twelve figures of four panels.
FIGURES = """
import io
from matplotlib.figure import Figure
for _ in range(12):
    figure = Figure()
    for number, axes in enumerate(figure.subplots(2, 2).flat):
        axes.bar(range(20), range(20))
        axes.plot(range(50), label=f"line {number}")
        axes.set_title(f"panel {number}")
        axes.legend()
    figure.savefig(io.BytesIO(), format="svg")
"""


def one_core():
    """Run on one of this process's cores, another one for each worker."""
    if hasattr(os, "sched_setaffinity"):
        cores, worker = sorted(os.sched_getaffinity(0)), os.environ.get("PYTEST_XDIST_WORKER", "gw0")
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


def seconds(words, folder):
    """Return the processor time of a python with these arguments on one core, its own and the system's for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # On several, commands work in further processes, whose time is not counted here.
    subprocess.run([sys.executable, *words], cwd=folder, check=True, timeout=600, preexec_fn=one_core)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def at_most(times, words, folder):
    """Return whether a command takes at most so many times the processor time of plain figures, in one of three tries.

    The figures are drawn before and after it. ``OUT`` in its words is another folder in each try.
    """
    for number in range(3):
        before = seconds(("-c", FIGURES), folder)
        own = seconds([word.replace("OUT", f"out-{number}") for word in words], folder)
        if own <= times * (before + seconds(("-c", FIGURES), folder)) / 2:
            return True
    return False
