"""Call a function for many arguments in several processes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import logging
import logging.handlers
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from calibtune.errors import WorkFailed
from calibtune.processes import GARBAGE

#: Processes at a time, whatever the machine: each holds what it imported.
MOST = 4
#: ``map``, for a sequence of arguments.
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def cores() -> int:
    """Return how many processes run at a time: one a core, up to :data:`MOST`."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, MOST)


def from_a_server(preload: Sequence[str]) -> Any:
    """Return a context of multiprocessing whose processes are forked from one that imported ``preload``.

    They ignore Ctrl-C, which is for the first process to answer, if they are asked for in its main thread. Where no
    such server can be, as on macOS, whose libraries break when forked, each process imports for itself.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    try:
        with ignoring_interrupts():
            forkserver.ensure_running()
    except OSError:  # such as a temporary folder with too long a name for a socket
        return multiprocessing.get_context("spawn")
    return context


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside the block and in programs started in it; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def mapping(processes: int, preload: Sequence[str]) -> Iterator[Map]:
    """Give a ``map`` over several processes, which import while the block begins.

    What is called, its arguments and what it returns must be picklable. What the calls log is logged here. A script
    with more than one process needs a main guard, as for all of multiprocessing.

    Args:
        processes: How many; 1: this one.
        preload: Modules that the calls need.

    Raises:
        WorkFailed: One of the processes was killed, for example because there is no memory left.
    """
    # What multiprocessing's own pools have started may start no others.
    if processes < 2 or multiprocessing.current_process().daemon:
        yield map
        return
    try:
        pool = concurrent.futures.ProcessPoolExecutor(processes, from_a_server(preload), _begin)
    except (ImportError, NotImplementedError, OSError):  # a system without semaphores
        yield map
        return
    beginning = threading.Thread(target=_start, args=(pool,))
    beginning.start()

    def mapped(call: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
        try:
            for result, records in pool.map(functools.partial(_logged, call), arguments):
                for record in records:
                    logger = logging.getLogger(record.name)
                    if logger.isEnabledFor(record.levelno):
                        logger.handle(record)
                yield result
        except (BrokenProcessPool, ConnectionError, EOFError) as error:
            raise WorkFailed(
                "a process that reads or draws ended early: there may be too little memory, or a script lacks "
                '`if __name__ == "__main__":`'
            ) from error

    try:
        yield mapped
    finally:
        beginning.join()
        pool.shutdown(cancel_futures=True)


def _start(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    """Have the pool's processes begin; what goes wrong goes wrong again at the first call."""
    with contextlib.suppress(Exception):
        pool.submit(int)


def _begin() -> None:
    """Let the first process alone answer Ctrl-C, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(max(GARBAGE, gc.get_threshold()[0]))
    end_with_parent()


def end_with_parent() -> None:
    """Have this process get SIGTERM when the one that asked for it has ended, however it did.

    Else a server that was still importing when that one was interrupted would fork a process for nobody.
    """
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _logged(call: Callable[[Any], Any], argument: Any) -> tuple[Any, list[logging.LogRecord]]:
    """Return what a call returns and what it logs."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)
    loggers = [logging.getLogger(name) for name in ("calibtune", "harness_ext")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        result = call(argument)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    return result, [records.get() for _ in range(records.qsize())]
