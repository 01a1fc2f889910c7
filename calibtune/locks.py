"""Hold an output folder, so that two commands never write into the same one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from calibtune.errors import UserError
from calibtune.files import LOCK, remove_temporary
from calibtune.processes import is_first_process
from calibtune.reading import Record, read_json


class Holder(Record):
    """Hold what a lock's file says of the process that has it."""

    process: int
    host: str
    since: str


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """Hold an output folder until the block ends; make it first, and remove what a killed command left half-written.

    Of several processes of one command only the first takes the lock. A folder that was made here and is still empty
    at the end is removed again.

    Args:
        output: The folder.

    Raises:
        UserError: Another command holds the folder; the message names it. Or the folder cannot be made.
    """
    if not is_first_process():
        yield
        return
    new = [folder for folder in (output, *output.parents) if not os.path.lexists(folder)]
    lock = FileLock(output / LOCK, timeout=0, fallback_to_soft=False)
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(_remove_empty, new)
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"--output {output} is being written by {_holder(output)}; wait for it, or give another folder"
            ) from None
        except OSError as error:
            raise UserError(f"--output {output} {_obstacle(output, error)}") from error
        at_the_end.callback(lock.release)
        # Before the release: who opened this file in the meantime sees that it is gone, and makes a new one.
        at_the_end.callback((output / LOCK).unlink, missing_ok=True)
        with (output / LOCK).open("w", encoding="utf-8") as file:
            file.write(_self().model_dump_json())
        remove_temporary(output)
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _obstacle(output: Path, error: OSError) -> str:
    """Say why an output folder cannot be made or written."""
    there = next(path for path in (output, *output.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        return f"cannot be made: {there} is a file; give a folder"
    return f"cannot be written: {error.strerror}; give another folder"


def _self() -> Holder:
    return Holder(
        process=os.getpid(), host=socket.gethostname(), since=datetime.now().astimezone().isoformat(" ", "seconds")
    )


def _holder(output: Path) -> str:
    """Say who holds a folder, as far as its lock tells."""
    try:
        found = read_json(output / LOCK, Holder)
        return f"another command (process {found.process} on {found.host}, since {found.since})"
    except UserError:
        return "another command"  # which has it for less than a moment
