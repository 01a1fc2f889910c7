"""Writing files so that a reader finds either the old one or the whole new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibtune.errors import UserError, WorkFailed


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes its place when the block ends without an error.

    Args:
        path: The file to write; its folder is made.

    Yields:
        The path to write to.

    Raises:
        WorkFailed: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
            raise WorkFailed(f"no space is left to write {path}; free some and run the same command again") from error
        raise WorkFailed(f"{path} cannot be written: {error.strerror}; choose another --output") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, in one step; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented and with sorted keys, in one step; see :func:`replacing`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: There is none that can be read, or it is not JSON; the line is named.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give a folder that calibtune wrote") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a file that can") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); write it again") from error


def keep_inputs(output: Path, *inputs: Path | str | None) -> None:
    """Refuse to overwrite a folder that is, or holds, something that the command reads.

    Args:
        output: The folder asked for.
        inputs: Files and folders; hub ids, None and what does not exist are passed over.

    Raises:
        UserError: With what would be removed.
    """
    for given in inputs:
        if given and Path(given).exists() and Path(given).resolve().is_relative_to(output.resolve()):
            raise UserError(f"--output {output} holds {given}, which this command reads; give a folder of its own")


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Make sure that nothing is lost by writing to an output folder.

    Args:
        output: The folder asked for.
        overwrite: Remove what is there.

    Raises:
        UserError: It exists, is not empty, and ``overwrite`` is off; or it is a file.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    if any(output.iterdir()):
        if not overwrite:
            raise UserError(f"--output {output} holds files already; give another folder or --overwrite")
        shutil.rmtree(output)
