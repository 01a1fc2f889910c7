"""Keep the answers on a board, so that models can be added where the samples files are gone.

Each file is named by the hash of what it holds; ``leaderboard.json`` says which belong to whom.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from calibtune.errors import UserError
from calibtune.files import replacing, write_text
from calibtune.reading import MOST_LISTED, Count, Record, parse_json, read_array, read_json, read_text
from calibtune.reporting.leaderboard.entries import Answers, Entry
from calibtune.reporting.runs import Run
from calibtune.results.pairs import Key
from calibtune.results.samples import MOST_LETTERS
from harness_ext.calibration import validate_rows

INDEX, FOLDER = "leaderboard.json", "kept"
CURE = "make the board again from the samples files, without --add"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Keys = list[tuple[str, Annotated[int, Field(ge=0, lt=MOST_LETTERS)], Count]]


class KeptAnswers(Record):
    """Hold which files have a model's answers to a task."""

    answers: Digest
    questions: Digest
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    prompts: str | None


class KeptEntry(Record):
    """Hold an entry, as far as a later board needs it."""

    source: str
    folder: str
    model_args: dict[str, Any]
    settings: list[str]
    date: str
    shots: dict[str, int]
    size: Annotated[int, Field(gt=0, lt=10**15)] | None
    suffix: str
    tasks: dict[str, KeptAnswers]


class Board(Record):
    """Hold what is read of an earlier board."""

    sort: Literal["nll", "conf_ece", "acc"]
    kept: list[KeptEntry]


def read_board(output: Path) -> tuple[list[Entry], str]:
    """Read the entries of a board, and what it is sorted by.

    Raises:
        UserError: The folder holds no board, or a file is missing or not what was written.
    """
    if not (output / INDEX).is_file():
        raise UserError(f"--add: {output} has no {INDEX}, so there is no board to add to; leave out --add")
    board = read_json(output / INDEX, Board, CURE, MOST_LISTED)
    keys: dict[str, tuple[Key, ...]] = {}
    # Runs of one evaluation at several temperatures are one run, with one label.
    runs: dict[str, Run] = {}
    return [_entry(entry, output / FOLDER, keys, runs) for entry in board.kept], board.sort


def _entry(kept: KeptEntry, folder: Path, keys: dict[str, tuple[Key, ...]], runs: dict[str, Run]) -> Entry:
    run = Run(
        Path(kept.source),
        Path(kept.folder),
        kept.model_args,
        tuple(kept.settings),
        kept.date,
        shots=dict(kept.shots),
        size=kept.size,
    )
    tasks = {}
    for task, files in kept.tasks.items():
        if files.questions not in keys:
            keys[files.questions] = _read_keys(folder, files.questions)
        path = folder / f"{files.answers}.npy"
        values, known = read_array(path, files.answers, CURE), keys[files.questions]
        try:
            values, _ = validate_rows(values, [right for _, right, _ in known])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        tasks[task] = Answers(values, known, files.temperature, files.prompts)
    mark = repr((kept.folder, kept.date, kept.settings, kept.model_args))
    return Entry(runs.setdefault(mark, run), kept.suffix, tasks)


def _read_keys(folder: Path, digest: str) -> tuple[Key, ...]:
    path = folder / f"{digest}.json"
    text = read_text(path, CURE, MOST_LISTED)
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise UserError(f"{path} is not what was written: its hash differs; {CURE}")
    return tuple(parse_json(text, Keys, str(path), CURE))


def keep(entries: Sequence[Entry], output: Path) -> list[dict[str, Any]]:
    """Write the answers that are not there yet, and return what the index says of them."""
    names: dict[tuple[Key, ...], str] = {}
    return [
        {
            "source": str(entry.run.source),
            "folder": str(entry.run.folder),
            "model_args": entry.run.model_args,
            "settings": list(entry.run.settings),
            "date": entry.run.date,
            "shots": entry.run.shots,
            "size": entry.run.size,
            "suffix": entry.suffix,
            "tasks": {task: _keep(answers, output / FOLDER, names) for task, answers in entry.tasks.items()},
        }
        for entry in entries
    ]


def _keep(answers: Answers, folder: Path, names: dict[tuple[Key, ...], str]) -> dict[str, Any]:
    if answers.keys not in names:
        text = json.dumps(answers.keys)
        names[answers.keys] = hashlib.sha256(text.encode()).hexdigest()
        write_text(folder / f"{names[answers.keys]}.json", text)
    buffer = io.BytesIO()
    np.save(buffer, answers.loglikelihoods, allow_pickle=False)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    if not (path := folder / f"{digest}.npy").exists():
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    return {
        "answers": digest,
        "questions": names[answers.keys],
        "temperature": answers.temperature,
        "prompts": answers.prompts,
    }


def remove_others(kept: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Remove answers that no entry has any more."""
    files = [task for entry in kept for task in entry["tasks"].values()]
    needed = {f"{task['answers']}.npy" for task in files} | {f"{task['questions']}.json" for task in files}
    for path in (output / FOLDER).iterdir():
        if path.name not in needed:
            path.unlink()
