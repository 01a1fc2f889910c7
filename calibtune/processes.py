"""Find out whether this is the first of several processes; end on SIGTERM as on Ctrl-C; limit time, memory, garbage."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

#: Objects made between two searches for garbage. Python's default of 700 spends a fifth of the imports of torch and
#: transformers on searching what is never garbage.
GARBAGE = 50_000


class Terminated(KeyboardInterrupt):
    """Report that the process was asked to end (SIGTERM), by a scheduler for example."""


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first under torchrun or accelerate.

    Only this process prints and writes.
    """
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM, so that files are closed and the user is told how to go on.

    Outside the main thread, where Python takes no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` if the block does not end in time.

    Outside the main thread, where Python takes no signals, and on systems without timers there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Raise ``MemoryError`` if the block takes so many more bytes; where the system knows no limit there is none."""
    try:
        import resource

        with open("/proc/self/statm", "rb", buffering=0) as file:  # a buffer would take longer than the rest
            pages = int(file.read(32).split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + size
    lower = min(limit for limit in (most, *before) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lower, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def seldom_collecting() -> Iterator[None]:
    """Search for garbage after :data:`GARBAGE` objects, as commands do, until the block or decorated function ends.

    Else every search of all objects visits what torch and transformers imported, a quarter of a second each time.
    """
    objects, young, old = gc.get_threshold()
    # 0: the caller wants no search at all. What was made before the block does not count.
    gc.set_threshold(objects and max(GARBAGE, objects), young, old + gc.get_count()[2])
    try:
        yield
    finally:
        gc.set_threshold(objects, young, old)
