"""Find out whether this is the first of several processes; end on SIGTERM as on Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


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
