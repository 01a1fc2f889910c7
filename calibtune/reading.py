"""Read files that may come from strangers: one reader for each format, all of them bounded in time and memory.

They take regular files alone, of a limited size, nested to a limited depth, in UTF-8 with or without a byte order mark,
and check what was read against a type. Whatever is wrong is one :class:`~calibtune.errors.UserError`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from calibtune.errors import UserError, reason
from harness_ext.binning import FloatArray

#: Bytes of a JSON document, of one that lists questions, of a line of JSON lines, and of a YAML file or a template.
MOST_JSON, MOST_LISTED, MOST_LINE, MOST_TEXT = 2**24, 2**27, 2**24, 2**17
#: Bytes of an array.
MOST_ARRAY = 2**30
#: Nested lists and mappings in YAML; in JSON pydantic stops at 200.
MOST_NESTED = 50
#: Characters of a number in YAML; Python's own reading of longer ones takes quadratic time.
MOST_DIGITS = 100
#: What is no regular file, by its type in ``stat``.
OTHERS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
BOM, GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"
AGAIN = "run the command that wrote it again"

#: A share, such as a win rate.
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
#: A number that JSON wrote as one: no truth value, no text, neither NaN nor infinite.
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
#: A count or an index.
Count = Annotated[int, Strict(), Field(ge=0, lt=2**63)]


class Record(BaseModel):
    """Hold what is read from a file: values are not converted, and keys that are not named are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


@contextlib.contextmanager
def opened(path: Path, cure: str = AGAIN) -> Iterator[BinaryIO]:
    """Open a regular file to read its bytes.

    Args:
        path: The file.
        cure: What the user is told to do, for the message.

    Raises:
        UserError: It does not exist, is a folder, pipe or device, is compressed, or cannot be read.
    """
    with _told_of(path, cure):
        _check_regular(path, cure)
        with open(path, "rb") as file:
            if file.peek(2)[:2] == GZIP:
                raise UserError(f"{path} is compressed; unpack it with gunzip")
            yield file


@contextlib.contextmanager
def _told_of(path: Path, cure: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {cure}") from None
    except OSError as error:
        raise UserError(f"{_short(path)} cannot be read: {error.strerror}; {cure}") from None


def _check_regular(path: Path, cure: str) -> None:
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise UserError(f"{path} is {OTHERS.get(kind, 'no file')}, not a file; {cure}")


def check_folder(folder: Path, cure: str = AGAIN) -> None:
    """Refuse a folder in which a file that another library will read is none.

    Args:
        folder: A model's or an adapter's.
        cure: What the user is told to do, for the message.

    Raises:
        UserError: With the first file that is a pipe, a device, a folder or a link to nothing.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".txt", ".model"):
            with _told_of(path, cure):
                _check_regular(path, cure)


def read_text(path: Path, cure: str = AGAIN, most: int = MOST_TEXT) -> str:
    """Read a text file in UTF-8.

    Raises:
        UserError: See :func:`opened`; or it is larger than ``most`` bytes, or not UTF-8.
    """
    try:
        return _whole(path, most, cure).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); {cure}") from None


def read_json(path: Path, kind: Any = Any, cure: str = AGAIN, most: int = MOST_JSON) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: The type that it must have, as pydantic knows types; keys that a model does not name are ignored.
        cure: What the user is told to do, for the message.
        most: Bytes that it may have.

    Raises:
        UserError: See :func:`opened`; or it is too large, not JSON, nested too deeply, or of another type. The message
            names the place and the value.
    """
    return parse_json(_whole(path, most, cure), kind, str(path), cure)


def parse_json(text: bytes | str, kind: Any, where: str, cure: str = AGAIN) -> Any:
    """Return a JSON text's value, checked as in :func:`read_json`; ``where`` names the text in messages."""
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise UserError(f"{where}{_told(error)}; {cure}") from None


def checked(value: Any, kind: Any, where: str, cure: str = AGAIN) -> Any:
    """Return a value that was read before, checked as in :func:`read_json`."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where}{_told(error)}; {cure}") from None


def read_lines(path: Path, cure: str = AGAIN) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line of a file that is not empty, one after the other.

    Raises:
        UserError: See :func:`opened`; or a line is too long.
    """
    with opened(path, cure) as file:
        for number, line in enumerate(iter(functools.partial(file.readline, MOST_LINE + 1), b""), start=1):
            if len(line) > MOST_LINE:
                raise UserError(f"{path}, line {number} has more than {MOST_LINE} bytes; {cure}")
            if number == 1:
                line = line.removeprefix(BOM)
            if not line.isspace() and line:
                yield number, line


def read_json_lines(path: Path, kind: Any = Any, cure: str = AGAIN) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line of a file of JSON lines, checked as in :func:`read_json`.

    Raises:
        UserError: As there; the message names the line.
    """
    for number, line in read_lines(path, cure):
        yield number, parse_json(line, kind, f"{path}, line {number}", cure)


def read_rows(path: Path, kind: Any, cure: str = AGAIN) -> list[Any]:
    """Read a JSON list or JSON lines, each entry checked as in :func:`read_json`.

    Raises:
        UserError: As there; the message names the line or the entry. Or there is no entry.
    """
    data = _whole(path, MOST_LISTED, cure)
    if data.lstrip()[:1] == b"[":
        values = parse_json(data, list[Any], str(path), cure)
    else:
        lines = enumerate(data.split(b"\n"), start=1)
        values = [parse_json(line, Any, f"{path}, line {number}", cure) for number, line in lines if line.strip()]
    if not values:
        raise UserError(f"{path} is empty; {cure}")
    return [checked(value, kind, f"{path}, entry {number}", cure) for number, value in enumerate(values)]


def read_yaml(path: Path, cure: str = AGAIN) -> Any:
    """Read a YAML file of plain values, without aliases.

    Raises:
        UserError: See :func:`read_text`; or it is not YAML, gives a key twice, is nested too deeply, or has an alias or
            a number of more than 100 characters.
    """
    text = read_text(path, cure)
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; {cure}") from None
    except _Refused as error:
        raise UserError(f"{path} {error}; {cure}") from None
    # On a value that its own tag does not fit, YAML's constructors raise whatever comes.
    except Exception as error:
        raise UserError(f"{path} is not YAML: {reason(error)}; {cure}") from None


class _Refused(Exception):
    """Report YAML that could be read and is not; the message goes on after the file's name."""


class _Loader(yaml.SafeLoader):
    """Load plain values; refuse aliases, which can stand for billions of values, and a key given twice."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > MOST_NESTED:
            raise _Refused(f"has more than {MOST_NESTED} nested lists or mappings")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _Refused("has an alias (*name), which can stand for more than fits in memory")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if len(value) > MOST_DIGITS and node.tag.endswith((":int", ":float")):
            raise _Refused(f"has a number of {len(value)} characters")
        value.encode()  # a lone surrogate is no text
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            raise _Refused(f"gives {next(key for key in keys if keys.count(key) > 1)!r:.80} twice")
        return mapping


def read_array(path: Path, digest: str, cure: str = AGAIN) -> FloatArray:
    """Read a table of numbers that ``numpy.save`` wrote.

    Args:
        path: The file.
        digest: Its SHA-256.
        cure: What the user is told to do, for the message.

    Raises:
        UserError: See :func:`opened`; or it is not what was written.
    """
    data = _whole(path, MOST_ARRAY, cure)
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{path} is not what was written: its hash differs; {cure}")
    try:
        found = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is no array ({reason(error)}); {cure}") from None
    if found.ndim != 2 or found.dtype != np.float64:
        raise UserError(f"{path} holds {found.dtype} of shape {found.shape}, no table of float64; {cure}")
    return np.asarray(found)


def _whole(path: Path, most: int, cure: str) -> bytes:
    with opened(path, cure) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} has more than {most} bytes; {cure}")
    return data.removeprefix(BOM)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _told(error: ValidationError) -> str:
    """Return what is wrong first, as the rest of a sentence that begins with the file's name."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return f" is not JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f" has no {place}"
    what = f": {place} is" if place else " holds"
    should = first["msg"].removeprefix("Input ").removeprefix("List ").removeprefix("Dictionary ").lower()
    return f"{what} {first['input']!r:.80}, which {should}"


def _short(path: Path) -> str:
    return str(path) if len(str(path)) < 300 else f"{str(path)[:200]}..."
