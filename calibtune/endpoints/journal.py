"""Store paid replies on disk one by one, so that an interrupted run loses none of them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from calibtune.errors import WorkFailed
from calibtune.reading import Record, checked, parse_json, read_lines

CURE = "remove this line and run again"


class Entry(Record):
    """Hold a line of a journal."""

    key: str
    value: Any


class Journal:
    """Append key-value pairs to a file of JSON lines, each flushed to the disk; thread-safe.

    :mod:`calibtune.files` writes whole files; here each line must be on disk at once. An incomplete
    last line, from an interrupted run, is removed when the file is opened.
    """

    def __init__(self, path: Path, kind: Any = Any) -> None:
        """Open or create the file; the command holds its folder, so that no other run writes it.

        Args:
            path: The file; missing folders are created.
            kind: Type of the values, as pydantic knows types.

        Raises:
            UserError: A line other than the last is damaged.
            WorkFailed: The file cannot be written.
        """
        self.path = path
        self._values: dict[str, Any] = {}
        self._guard = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._load(kind)
            self._file = path.open("ab")
        except OSError as error:
            raise WorkFailed(f"{path} cannot be written: {error.strerror}; choose another --output") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        """Return the value of ``key``, or None."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Write a value to the disk before returning.

        Raises:
            WorkFailed: The file cannot be written.
        """
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False).encode() + b"\n"
        with self._guard:
            try:
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise WorkFailed(
                    f"{self.path} cannot be written: {error.strerror}; free disk space and run the same command again"
                ) from error
            self._values[key] = value

    def _load(self, kind: Any) -> None:
        for number, line in read_lines(self.path, CURE):
            if not line.endswith(b"\n"):
                os.truncate(self.path, self.path.stat().st_size - len(line))
                return
            where = f"{self.path}, line {number}"
            entry = parse_json(line, Entry, where, CURE)
            self._values[entry.key] = checked(entry.value, kind, where, CURE)


def key_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON.

    Example:
        >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
