"""Mark and find complete checkpoints, from which ``--resume`` continues a fit."""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from calibtune.errors import UserError
from calibtune.files import WHOLE, remove, write_text
from calibtune.reading import Count, Record, read_json

#: Folder of an unfinished fit's checkpoints.
CHECKPOINTS = "checkpoints"


class Whole(Record):
    """Hold the mark of a complete checkpoint."""

    #: Number of steps trained before it.
    step: Count
    #: CRC-32 of each file, by its path in the checkpoint.
    files: dict[str, Count]


def seal(folder: Path, step: int) -> None:
    """Mark a checkpoint as complete.

    Args:
        folder: Folder of the checkpoint.
        step: Number of steps trained before it.
    """
    write_text(folder / WHOLE, json.dumps({"step": step, "files": _checksums(folder)}))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None."""
    return next(filter(_is_whole, sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)), None)


def remove_unfinished(folder: Path) -> None:
    """Remove incomplete checkpoints, because Trainer would write new ones into their folders."""
    for path in folder.glob("checkpoint-*"):
        if not _is_whole(path):
            remove(path)


def _step(folder: Path) -> int:
    """Return the number in a checkpoint's name, -1 where there is none."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() and len(number) < 19 else -1


def _is_whole(folder: Path) -> bool:
    """Return whether a checkpoint is marked as complete and its files are those that were written."""
    try:
        whole = read_json(folder / WHOLE, Whole)
        return _step(folder) == whole.step and whole.files.items() <= _checksums(folder).items()
    except (OSError, UserError):
        return False


def _checksums(folder: Path) -> dict[str, int]:
    """Return each file's CRC-32; a disk that lost power can hold a file of the right size and nothing in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.name != WHOLE]
    with ThreadPoolExecutor() as pool:  # an 8B's adapter and its moments have 4 GB
        return dict(zip([str(path.relative_to(folder)) for path in files], pool.map(_crc32, files), strict=True))


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            found = zlib.crc32(block, found)
    return found
