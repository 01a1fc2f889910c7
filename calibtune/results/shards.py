"""Name the shards of a run (``calibtune eval --shard``), and put their samples files together again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from calibtune.errors import UserError
from calibtune.results.records import FILE_NAME, record_beside

T = TypeVar("T")
#: More missing shards are counted, not named.
NAMED = 5


@dataclass(frozen=True, order=True)
class Shard:
    """Name one of equal parts, such as 3/8, the third eighth.

    Example:
        >>> str(Shard.parse("3/8")), Shard(3, 4).of("abcdefgh")
        ('3/8', 'ef')
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text names.

        Raises:
            UserError: It names none.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or shard.number > shard.count:
            raise UserError(f"--shard is {text[:40]!r}; give which of how many, such as 3/8 for the third eighth")
        return shard

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this part of some items; the parts are as long as each other, give or take one."""
        return items[len(items) * (self.number - 1) // self.count : len(items) * self.number // self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def shard_of(record: Mapping[str, Any]) -> Shard | None:
    """Return the shard that a results file is of; None: it is of a whole run."""
    shard = (record.get("config") or {}).get("calibtune") or {}
    return Shard.parse(shard["shard"]) if shard.get("shard") else None


def whole_of(record: Mapping[str, Any]) -> str:
    """Return what the results files of all shards of a run have in common, and no other run's."""
    setup, shard = dict(record["config"]["calibtune"]), shard_of(record)
    prompts = [record.get(name) for name in ("chat_template_sha", "system_instruction_sha")]
    return json.dumps([setup | {"shard": shard.count if shard else None}, prompts], sort_keys=True, default=str)


def together(files: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Put the samples files of the shards of each run and task together; a whole run's stand alone.

    Args:
        files: Samples files, the newest of each shard.

    Returns:
        Each task's files by the number of their shard, for :func:`calibtune.results.samples.read_samples`.

    Raises:
        UserError: A shard is missing or there twice.
    """
    found: dict[tuple[str, ...], dict[Shard, Path]] = {}
    for file in files:
        record = record_beside(file)
        shard = shard_of(record)
        if shard is None:
            found[(str(file),)] = {Shard(1, 1): file}
            continue
        task = FILE_NAME.sub(r"\g<task>", file.name)
        parts = found.setdefault((task, whole_of(record)), {})
        if parts.setdefault(shard, file).resolve() != file.resolve():
            raise UserError(f"shard {shard} of {task} is in both {parts[shard]} and {file}; give one of them")
    for (task, *_), parts in found.items():
        _check_all(task, parts)
    return [tuple(file for _, file in sorted(parts.items())) for parts in found.values()]


def _check_all(task: str, parts: Mapping[Shard, Path]) -> None:
    first, count = next(iter(parts.items()))[1], next(iter(parts)).count
    if missing := [str(shard) for number in range(1, count + 1) if (shard := Shard(number, count)) not in parts]:
        more = f" and {len(missing) - NAMED} more" * (len(missing) > NAMED)
        raise UserError(
            f"{task} was evaluated in {count} shards (as {first}), and --shard {', '.join(missing[:NAMED])}{more} "
            f"{'are' if len(missing) > 1 else 'is'} missing; evaluate them, or give their folders too"
        )
