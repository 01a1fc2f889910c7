"""Write files atomically, so that a reader never finds half a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibtune.errors import UserError, WorkFailed

#: File of the lock in an output folder; see :mod:`calibtune.locks`.
LOCK = ".calibtune.lock"
#: File written last into a folder, with the hashes of the others; without it, the folder is incomplete.
WHOLE = "whole.json"
#: Names of files that are being written begin so.
TEMPORARY = ".calibtune-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block ends without an error.

    Args:
        path: The file to write; missing folders are created.

    Yields:
        The temporary path, to which the block writes.

    Raises:
        WorkFailed: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise WorkFailed(
                f"no space is left to write {path}; free some space and run the same command again"
            ) from error
        raise WorkFailed(f"{path} cannot be written: {error.strerror}; choose another --output") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file with indents and sorted keys atomically; see :func:`replacing`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def keep_inputs(output: Path, *inputs: Path | str | None) -> None:
    """Check that the output folder is not and does not contain a file or folder that is read.

    Args:
        output: The output folder.
        inputs: Files and folders; hub ids, None and paths that do not exist are ignored.

    Raises:
        UserError: An input is in the output folder; the message names it.
    """
    for given in inputs:
        if given and Path(given).exists() and Path(given).resolve().is_relative_to(output.resolve()):
            raise UserError(f"--output {output} contains {given}, which this command reads; give another folder")


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Check that the output folder is new or empty but for its lock, or empty it if ``overwrite`` is set.

    Args:
        output: The output folder.
        overwrite: Remove existing files.

    Raises:
        UserError: The path is a file, or the folder is not empty and ``overwrite`` is off.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    found = [path for path in output.iterdir() if path.name != LOCK]
    if found and not overwrite:
        raise UserError(f"--output {output} is not empty; give another folder or --overwrite")
    for path in found:
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_temporary(output: Path) -> None:
    """Remove what killed commands left half-written in a folder and below, and the folders that held nothing else.

    Args:
        output: A folder that this process holds; folders below that another process holds are left alone.
    """
    for path in list(output.rglob(f"{TEMPORARY}*")):
        between = path.relative_to(output).parents
        if path.is_file() and not any((output / folder / LOCK).exists() for folder in between if folder != Path()):
            path.unlink()
            with contextlib.suppress(OSError):
                path.parent.rmdir()
