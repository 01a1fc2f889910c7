"""Read the files that lm_eval writes with ``--log_samples`` as arrays."""

from __future__ import annotations

import array
import hashlib
import itertools
import math
import os
import shlex
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, GetPydanticSchema
from pydantic_core import core_schema

from calibtune.errors import UserError
from calibtune.reading import Count, Record, checked, read_json, read_json_lines
from calibtune.results.records import FILE_NAME, record_beside
from calibtune.results.shards import Shard, shard_of
from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import validate_rows
from harness_ext.orders import Orders, averaged
from harness_ext.ranges import BoolArray
from harness_ext.sanity import check_scored, check_told_apart, is_unseen, warn_of_ties

#: A question with more options is none; a table of all questions has a column for each.
MOST_LETTERS = 1000
#: Rows of a filter from which its temperature is inferred, unless all letters of each have one value.
ROWS_FOR_T = 100
#: Probabilities of a question's options may sum to 1 within this.
SUM = 1e-6
#: Values of the table of all questions, absent letters included.
MOST_VALUES = 2**27
CURE = "give a samples file of a multiple-choice task that lm_eval wrote whole with --log_samples"


def _or_text(schema: Any, complaint: str) -> Any:
    """Return the schema of a number that JSON holds as such, or as text."""
    text = core_schema.chain_schema([core_schema.str_schema(), {**schema, "strict": False}])
    return core_schema.union_schema(
        [{**schema, "strict": True}, text],
        mode="left_to_right",
        custom_error_type="value",
        custom_error_message=complaint,
    )


_NUMBER = _or_text(core_schema.float_schema(allow_inf_nan=False), "is not a finite log-likelihood")
_INDEX = _or_text(core_schema.int_schema(ge=0, lt=MOST_LETTERS), "is not the index of an option")
#: What a model says of an option: the log-likelihood, then whatever the task adds.
_ANSWER = core_schema.tuple_schema([_NUMBER, core_schema.any_schema()], variadic_item_index=1)
Response = Annotated[list[Any], GetPydanticSchema(lambda *_: core_schema.list_schema(_ANSWER, min_length=1))]
#: What ``letter_softmax`` makes of the options: probability, scaled and raw log-likelihood of each.
_SCALED = core_schema.list_schema(core_schema.tuple_schema([_NUMBER] * 3), min_length=1)
Scaled = Annotated[list[Any], GetPydanticSchema(lambda *_: _SCALED)]
Target = Annotated[int, GetPydanticSchema(lambda *_: _INDEX)]


class Row(Record):
    """Hold a line of a samples file, as far as it is read."""

    doc_id: Count
    doc: dict[str, Any]
    resps: Annotated[list[Response], Field(max_length=MOST_LETTERS)]
    target: Target
    filter: str = "none"
    doc_hash: str | None = None
    prompt_hash: str | None = None
    target_hash: str | None = None
    filtered_resps: Any = None


class Asked(Record):
    """Hold what a line of a samples file says of the prompt."""

    doc_id: Count
    arguments: dict[str, Any] | None = None


class Counted(Record):
    """Hold how many questions of a task a run evaluated, and how many there are."""

    effective: Count
    original: Count | None = None


class Run(Record):
    """Hold what a results file says of the samples files beside it."""

    n_samples: dict[str, Counted] = Field(alias="n-samples")
    task_hashes: dict[str, str] | None = None


@dataclass(frozen=True)
class Samples:
    """Hold the questions of a samples file in the order of ``doc_id``."""

    task: str
    #: Filter whose rows were read; all filters have the same raw log-probabilities.
    filter: str
    path: Path
    #: Raw log-probabilities of the letters (lm_eval's log-likelihoods), shape (N, K), NaN where the letter is absent.
    #: They do not sum to 1 over the letters. Of questions asked in several orders of their options: of the options in
    #: their own order, averaged (:func:`harness_ext.orders.averaged`).
    log_probs: FloatArray
    #: Index of the right letter, shape (N,).
    labels: IntArray
    #: lm_eval's hash of each document, the same for every model.
    doc_hashes: tuple[str, ...] = field(repr=False)
    #: lm_eval's hash of each prompt as the model saw it, or None if the file has none.
    prompt_hashes: tuple[str | None, ...] = field(repr=False)
    #: Temperature of each filter whose temperature can be inferred.
    temperatures: dict[str, float]
    #: Whether a log-probability is the bound of a letter that a server did not show, shape (N, K); in any order.
    unseen: BoolArray = field(repr=False)
    #: In how many orders of its options each question was asked; "all": in as many as it has options.
    orders: Orders
    #: True probabilities p* of the letters, shaped as the log-probabilities, where the documents of the task hold them.
    p_star: FloatArray | None = None
    #: Files of the run's other shards (``eval --shard``).
    more: tuple[Path, ...] = ()

    @property
    def where(self) -> str:
        """Return the file, and how many there are besides."""
        return str(self.path) + (f" and {len(self.more)} more shard{'s' * (len(self.more) > 1)}" if self.more else "")

    @cached_property
    def documents(self) -> tuple[dict[str, Any], ...]:
        """Read the documents, in the order of the other fields; they take more memory than all of these."""
        rows = (
            row
            for path in (self.path, *self.more)
            for _, row in read_json_lines(path, Row, CURE)
            if row.filter == self.filter
        )
        return tuple(row.doc for row in sorted(rows, key=lambda row: row.doc_id))


def find_samples(path: Path) -> list[Path]:
    """Return a samples file itself, or the newest one of each task, shard and folder below a folder.

    Raises:
        UserError: The path does not exist, or the folder has no samples files.
    """
    if path.exists() and not path.is_dir():
        return [path]
    newest: dict[tuple[Path, str, Shard | None], Path] = {}
    shards: dict[tuple[Path, str], Shard | None] = {}
    for file in sorted(path.rglob("samples_*.jsonl")):
        if match := FILE_NAME.fullmatch(file.name):
            run = file.parent, match["date"]
            if run not in shards:
                shards[run] = shard_of(record_beside(file))
            newest[file.parent, match["task"], shards[run]] = file
    if not path.exists():
        raise UserError(f"{path} does not exist; give a samples file of lm_eval or its output folder")
    if not newest:
        raise UserError(
            f"{path} has no samples_*.jsonl; run lm_eval with --log_samples --output_path {shlex.quote(str(path))}"
        )
    return list(newest.values())


class _Columns:
    """Collect the rows of the first filter of samples files, and what all rows tell of the run."""

    def __init__(self) -> None:
        self.filter = ""
        self.doc_ids = array.array("q")
        self.labels = array.array("q")
        self.letters = array.array("q")
        self.values = array.array("d")
        self.unseen = array.array("b")
        #: Of the options' own order alone.
        self.own = array.array("d")
        self.own_unseen = array.array("b")
        self.orders = array.array("q")
        self.doc_hashes: list[str] = []
        self.prompt_hashes: list[str | None] = []
        #: p* of the letters of all rows so far; None from the first row without one.
        self.p_star: array.array[float] | None = array.array("d")
        #: Whether each answer is of a letter. Win rates' samples hold whole responses, with token counts beside the
        #: log-likelihoods.
        self.of_letters = True
        #: Of each filter, with the lowest question that tells it.
        self.temperatures: dict[str, tuple[int, float]] = {}

    def read(self, path: Path) -> int | None:
        """Add the rows of a file and check that it is complete; return how many questions its task has, if known."""
        start, digest, seen = len(self.doc_ids), hashlib.sha256(), Counter[str]()
        for _, row in read_json_lines(path, Row, CURE):
            self.filter = self.filter if self.doc_ids else row.filter
            seen[row.filter] += 1
            digest.update(f"{row.doc_hash}{row.prompt_hash}{row.target_hash}".encode())
            if seen[row.filter] <= ROWS_FOR_T:
                self._infer_temperature(row)
            if row.filter == self.filter:
                self._add(row)
        if len(self.doc_ids) == start:
            raise UserError(f"{path} is empty; run the evaluation again with --log_samples")
        return _check_complete(path, np.sort(self.doc_ids[start:]), digest.hexdigest())

    def _infer_temperature(self, row: Row) -> None:
        told = self.temperatures.get(row.filter)
        temperature = _temperature(row.filtered_resps) if told is None or row.doc_id < told[0] else None
        if temperature is not None:
            self.temperatures[row.filter] = row.doc_id, temperature

    def _add(self, row: Row) -> None:
        answers = [response[0] for response in row.resps]
        # Where several processes evaluate, the harness repeats the last letter of some: no order of its own.
        orders = min(map(len, row.resps), default=1)
        self.orders.append(orders)
        self.doc_ids.append(row.doc_id)
        self.labels.append(row.target)
        self.letters.append(len(answers))
        self.own.extend(answer[0] for answer in answers)
        self.own_unseen.extend(is_unseen(answer) for answer in answers)
        self.values.extend(averaged([[response[i][0] for response in row.resps] for i in range(orders)]))
        self.unseen.extend(any(map(is_unseen, response[:orders])) for response in row.resps)
        self.of_letters = self.of_letters and all(len(answer) <= 2 for answer in answers)
        self.doc_hashes.append(str(row.doc_hash))
        self.prompt_hashes.append(row.prompt_hash)
        truth = _distribution(row.doc.get("p_star"), len(answers))
        if self.p_star is not None and truth is not None:
            self.p_star.extend(truth)
        else:
            self.p_star = None

    def by_letter(self, values: array.array[Any]) -> FloatArray:
        """Return a value of each letter of all questions in shape (N, K), NaN where a question lacks the letter."""
        letters = np.asarray(self.letters)
        if len(letters) * letters.max() > MOST_VALUES:
            raise UserError(f"{len(letters)} questions of up to {letters.max()} options are too many; split the file")
        found = np.full((len(letters), letters.max()), np.nan)
        found[np.arange(found.shape[1]) < letters[:, None]] = values
        return found


def read_samples(path: Path, *more: Path) -> Samples:
    """Read a samples file of a multiple-choice task, row by row.

    If the folder has the run's ``results_<date>.json``, it is used to check that no question is
    missing.

    Args:
        path: ``samples_<task>_<date>.jsonl``.
        *more: Files of the run's other shards, as :func:`calibtune.results.shards.together` returns them.

    Returns:
        The questions of the file; of all shards, as the whole run has them.

    Raises:
        UserError: A line is damaged; questions are missing, repeated or from another task; a
            question has no log-likelihoods or no right answer; or the backend gave all letters the
            same log-likelihood. The message names the line or question and the value.
    """
    columns = _Columns()
    sizes = {columns.read(file) for file in (path, *more)}
    if len(sizes) > 1:
        raise UserError(
            f"{path.parent} and {more[0].parent} are shards of {' and '.join(sorted(map(str, sizes)))} questions; "
            "evaluate all shards on the same data"
        )
    doc_ids = np.asarray(columns.doc_ids)
    order = np.argsort(doc_ids, kind="stable")
    if more:
        _check_once(path, doc_ids[order])
    labels = np.asarray(columns.labels)[order]
    _check_labels(path, doc_ids[order], labels, np.asarray(columns.letters)[order])
    try:
        log_probs, labels = validate_rows(columns.by_letter(columns.values)[order], labels)
        unseen = columns.by_letter(columns.unseen)[order] == 1
        if columns.of_letters:
            check_scored(log_probs)
        # Letters that the model cannot tell apart are different options in each order.
        check_told_apart(columns.by_letter(columns.own)[order], columns.by_letter(columns.own_unseen)[order] == 1)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if columns.of_letters:
        warn_of_ties(log_probs[~unseen.any(axis=1)], str(path))
    match = FILE_NAME.fullmatch(path.name)
    return Samples(
        task=match["task"] if match else path.stem,
        filter=columns.filter,
        path=path,
        log_probs=log_probs,
        labels=labels,
        doc_hashes=tuple(columns.doc_hashes[row] for row in order),
        prompt_hashes=tuple(columns.prompt_hashes[row] for row in order),
        temperatures={name: temperature for name, (_, temperature) in columns.temperatures.items()},
        unseen=unseen,
        more=more,
        p_star=None if columns.p_star is None else columns.by_letter(columns.p_star)[order],
        orders="all" if columns.orders == columns.letters else max(columns.orders),
    )


def read_prompts(path: Path) -> list[tuple[str, list[str]]]:
    """Return the prompt of each question of a samples file as the model saw it, and what was scored after it.

    In the order of :func:`read_samples`; empty texts where the file does not say them.

    Raises:
        UserError: See :func:`read_samples`.
    """
    found = {}
    for _, row in read_json_lines(path, Asked, CURE):
        given = [each for each in row.arguments.values() if isinstance(each, dict)] if row.arguments else []
        prompt = str(given[0].get("arg_0", "")) if given else ""
        found[row.doc_id] = prompt, [str(each.get("arg_1", "")) for each in given]
    return [found[number] for number in sorted(found)]


def _check_once(path: Path, doc_ids: IntArray) -> None:
    if len(doubled := doc_ids[1:][doc_ids[1:] == doc_ids[:-1]]):
        raise UserError(
            f"{path}: question {doubled[0]} occurs twice, as if two runs were joined; give the file of one run"
        )


def _check_complete(path: Path, doc_ids: IntArray, digest: str) -> int | None:
    """Check the ids of a file's questions, which are in order, and the hash of all rows; return how many there are."""
    _check_once(path, doc_ids)
    expected = _expected(path)
    # With `--limit` the questions are the first ones, so a gap means lost rows. With `--samples`
    # they can be any, so only the results file tells.
    if expected is None:
        if doc_ids[-1] >= len(doc_ids):
            raise UserError(
                f"{path}: question {_missing(doc_ids, len(doc_ids))[0]} is missing; rows were removed, run the "
                "evaluation again"
            )
        return None
    count, original, hashes = expected
    if len(doc_ids) != count:
        raise UserError(
            f"{path} has {len(doc_ids)} questions, but the run's results file counts {count} (missing: "
            f"{_missing(doc_ids, count)}); rows were removed or the file is from another task, so run the evaluation "
            "again"
        )
    if hashes and hashes != digest:
        raise UserError(
            f"{path}: its questions are not those of the run's results file (their hash differs); rows were changed "
            "or the file is from another task, so run the evaluation again"
        )
    return original


def _missing(doc_ids: IntArray, count: int) -> list[int]:
    """Return the first five numbers from 0 to below ``count`` that are no question's."""
    known = set(doc_ids.tolist())
    return list(itertools.islice((number for number in range(count) if number not in known), 5))


def _expected(path: Path) -> tuple[int, int | None, str | None] | None:
    """Return from the run's results file the numbers of questions in it and of all, and their common hash, or None."""
    match = FILE_NAME.fullmatch(path.name)
    results = path.parent / f"results_{match['date']}.json" if match else None
    if not match or results is None or not os.path.lexists(results):
        return None
    try:
        run = read_json(results, Run, "run the evaluation again")
    except UserError as error:
        raise UserError(f"{path}: the run's results file is damaged: {error}") from None
    if match["task"] not in run.n_samples:
        raise UserError(
            f"{path}: the run's results file has no task {match['task']!r}, only {sorted(run.n_samples)!s:.300}; give "
            "the file its original name"
        )
    counted = run.n_samples[match["task"]]
    return counted.effective, counted.original, (run.task_hashes or {}).get(match["task"])


def _check_labels(path: Path, doc_ids: IntArray, labels: IntArray, letters: IntArray) -> None:
    if len(wrong := np.flatnonzero(labels >= letters)):
        row = wrong[0]
        raise UserError(
            f"{path}, question {doc_ids[row]}: the right answer is {labels[row]}, not the index of one of its "
            f"{letters[row]} options; {CURE}"
        )


def _distribution(given: Any, letters: int) -> list[float] | None:
    """Return what a document holds as the probabilities of its options, or None where it is something else."""
    if not isinstance(given, list) or len(given) != letters:
        return None
    if not all(isinstance(value, (int, float)) and value >= 0 for value in given):
        return None
    return given if abs(math.fsum(given) - 1) < SUM else None


def _temperature(filtered: Any) -> float | None:
    """Infer T of a ``letter_softmax`` filter from a question's raw and scaled log-likelihoods; None where it is none.

    Other filters can have triples too, such as log-likelihood, flag and token count.
    """
    try:
        letters = checked(filtered, Scaled, "")
    except UserError:
        return None
    raw, scaled = [row[2] for row in letters], [row[1] for row in letters]
    spread = max(scaled) - min(scaled)
    temperature = round((max(raw) - min(raw)) / spread, 9) if spread > 1e-6 else 0.0
    return temperature if 0 < temperature < math.inf else None
