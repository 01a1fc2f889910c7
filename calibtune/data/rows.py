"""Read questions from a file or data set of one's own: rows to documents with ``question``, ``choices``, ``gold``."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from pydantic_core import from_json

from calibtune.errors import UserError, reason
from calibtune.reading import opened, parse_json, read_lines
from harness_ext.documents import document, mirror_cache
from harness_ext.prompts import LETTERS

logger = logging.getLogger(__name__)

#: Names of columns that are looked for where none are given.
QUESTION = ("question", "question_stem", "query", "prompt")
CHOICES = ("choices", "options", "endings")
CHOICE_COLUMNS = (tuple(LETTERS), tuple(LETTERS.lower()), tuple(f"op{letter}" for letter in LETTERS.lower()))
ANSWER = ("answer", "gold", "answerKey", "answer_index", "label", "cop")
SPLIT = "split"
SPLITS = ("train", "validation", "test")
CURE = "give a JSONL, CSV or Parquet file, or a data set"
#: Bad rows that are shown; all are counted.
SHOWN = 100


@dataclass(frozen=True)
class Columns:
    """Name the columns of a question.

    Example:
        >>> Columns.of(["id", "question", "opa", "opb", "cop"])
        Columns(question='question', choices=('opa', 'opb'), answer='cop')
    """

    question: str
    #: One column with a list, or a column for each option.
    choices: tuple[str, ...]
    #: Holds an index from 0, a letter, or the right option's text.
    answer: str

    @classmethod
    def of(cls, present: Collection[str], given: Mapping[str, tuple[str, ...]] | None = None) -> Columns:
        """Return the columns that are given, the others found by their usual names.

        Args:
            present: All columns.
            given: From :func:`parse_columns`.

        Raises:
            UserError: A given column is not there, or none of the usual names is.
        """
        given = given or {}
        if unknown := [name for names in given.values() for name in names if name not in present]:
            raise UserError(f"--columns names {unknown[0]!r}, which is none of the columns {', '.join(present)}")
        several = [tuple(name for name in names if name in present) for names in CHOICE_COLUMNS]
        found: dict[str, list[tuple[str, ...]]] = {
            "question": [(name,) for name in QUESTION if name in present],
            "choices": [
                *((name,) for name in CHOICES if name in present),
                *(each for each in several if len(each) > 1),
            ],
            "answer": [(name,) for name in ANSWER if name in present],
        }
        found |= {key: [names] for key, names in given.items()}
        if missing := [key for key, names in found.items() if not names]:
            raise UserError(
                f"no column for {' and '.join(missing)} among {', '.join(present)}; "
                "give --columns question=...,choices=...,answer=..."
            )
        return cls(found["question"][0][0], found["choices"][0], found["answer"][0][0])

    def document(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Convert a row.

        Args:
            row: Its values by column.
            where: Name of the row for errors, such as ``quiz.jsonl line 3``.

        Returns:
            ``question``, ``choices`` and ``gold``.

        Raises:
            UserError: The row cannot be asked by letter, or its answer is none of its options.
        """
        if lacking := [name for name in (self.question, self.choices[0], self.answer) if row.get(name) is None]:
            raise UserError(f"{where} has no {lacking[0]!r}; fix or remove the row")
        choices, labels = self.options(row)
        gold = answer_index(row[self.answer], choices, labels)
        return document(row[self.question], choices, row[self.answer] if gold is None else gold, where)

    def options(self, row: Mapping[str, Any]) -> tuple[Any, list[str]]:
        """Return the options, and the labels that the row gives them, else letters."""
        if len(self.choices) > 1:
            options = [str(row[name]) if row.get(name) is not None else "" for name in self.choices]
            while options and not options[-1].strip():  # a question with fewer options than there are columns
                options.pop()
            return options, list(LETTERS)
        options = row[self.choices[0]]
        if isinstance(options, str) and options.lstrip().startswith("["):
            try:
                options = from_json(options)
            except ValueError:
                return options, list(LETTERS)
        if isinstance(options, Mapping) and {"text", "label"} <= options.keys():  # as in ARC
            return options["text"], [str(label) for label in options["label"]]
        return options, list(LETTERS)


def parse_columns(text: str) -> dict[str, tuple[str, ...]]:
    """Read ``--columns``.

    Raises:
        UserError: It cannot be read.

    Example:
        >>> parse_columns("question=q,choices=a,b,c,answer=right")
        {'question': ('q',), 'choices': ('a', 'b', 'c'), 'answer': ('right',)}
    """
    found: dict[str, list[str]] = {}
    key = ""
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        key = name.strip() if equals else key
        found.setdefault(key, []).append(value.strip() if equals else part)
    one = all(len(found.get(key, [""])) == 1 for key in ("question", "answer"))
    if not one or not found.keys() <= {"question", "choices", "answer"} or not all(map(all, found.values())):
        raise UserError(f"--columns is {text!r}; give question=NAME,choices=NAME[,NAME...],answer=NAME or some of them")
    return {key: tuple(names) for key, names in found.items()}


def answer_index(answer: Any, choices: Any, labels: Collection[str]) -> int | None:
    """Return the index of the right option.

    Args:
        answer: An index from 0, an option's label, or its text.
        choices: Texts of the options.
        labels: Labels of the options, in order.

    Returns:
        The index; None where the answer is none of these, or is different options by label and by text.

    Example:
        >>> [answer_index(answer, ["ice", "fire"], "AB") for answer in (1, "1", "B", "b", "fire", "C")]
        [1, 1, 1, 1, 1, None]
    """
    if isinstance(answer, float) and answer.is_integer():  # a column with gaps, as Parquet and CSV have them
        answer = int(answer)
    if not isinstance(choices, (list, tuple)) or isinstance(answer, bool) or not isinstance(answer, (int, str)):
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(choices) else None
    text, named = answer.strip(), list(labels)[: len(choices)]
    found = {i for i, choice in enumerate(choices) if isinstance(choice, str) and choice.strip() == text}
    found |= {i for i, label in enumerate(named) if label == text}
    if not found:
        found = {i for i, label in enumerate(named) if label.lower() == text.lower()}
    if not found and text in map(str, range(len(choices))):
        found = {int(text)}
    return found.pop() if len(found) == 1 else None


def read_questions(data: str, columns: str = "", skip_bad_rows: bool = False) -> datasets.DatasetDict:
    """Read all questions of a file or data set.

    Args:
        data: A JSONL, CSV or Parquet file; or a data set for ``datasets.load_dataset``, as ``ID`` or ``ID:CONFIG``.
        columns: As given with ``--columns``; what is left out is found by its usual name.
        skip_bad_rows: Leave out rows that cannot be used, and say how many, instead of refusing them.

    Returns:
        The splits ``train``, ``validation`` and ``test``, those that have questions. They are the data set's own, or
        those of a column ``split``; where there is neither, half of the questions are for training, by a hash of their
        text, so that the same question is always in the same half.

    Raises:
        UserError: The data cannot be read; or rows cannot be used: all of them, with their lines.
    """
    given = parse_columns(columns)
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    found: Columns | None = None
    problems, count, halved = [], 0, 0
    for where, row, split in _rows(data):
        count += 1
        try:
            if isinstance(row, UserError):
                raise row
            found = found or Columns.of(list(row), given)
            doc = found.document(row, where)
            if split is None and SPLIT in row:
                split = row[SPLIT]
                if split not in SPLITS:
                    raise UserError(f"{where} has the split {split!r}; give {', '.join(SPLITS)}")
            halved += split is None
            splits[split or _half(doc["question"])].append(doc)
        except UserError as error:
            problems.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
    _report(data, problems, count, skip_bad_rows)
    if halved:
        sizes = f"{len(splits['train'])} questions to fit on and {len(splits['test'])} to evaluate"
        logger.info("--data %s has no column %r: %s, by a hash of each question", data, SPLIT, sizes)
    return datasets.DatasetDict({name: datasets.Dataset.from_list(docs) for name, docs in splits.items() if docs})


def _report(data: str, problems: list[str], count: int, skip: bool) -> None:
    if not count or len(problems) == count:
        first = f": {problems[0]}" if problems else ""
        raise UserError(f"--data {data} has no question that can be used{first}")
    if not problems:
        return
    if skip:
        logger.warning("--data %s: %d of %d rows are left out, the first: %s", data, len(problems), count, problems[0])
        return
    lines = [*problems[:SHOWN], *([f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])]
    raise UserError(
        "\n  ".join(
            [f"--data {data}: {len(problems)} of {count} rows cannot be used; --skip-bad-rows leaves them out:", *lines]
        )
    )


def _half(question: str) -> str:
    return "train" if hashlib.sha256(question.encode()).digest()[0] % 2 else "test"


def _rows(data: str) -> Iterator[tuple[str, dict[str, Any] | UserError, str | None]]:
    """Read a row's name, its values or what is wrong with them, and its split where the data set has splits."""
    path = Path(data)
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() in readers:
        try:
            for where, row in readers[path.suffix.lower()](path):
                yield f"{path.name} {where}", row, None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"--data {data} cannot be read: {error}; save it again, as UTF-8") from None
    elif path.is_file():
        raise UserError(f"--data {data} ends in none of {', '.join(readers)}; save it as one of these")
    else:
        yield from _dataset(data)


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    for number, line in read_lines(path, CURE):
        try:
            yield f"line {number}", parse_json(line, dict[str, Any], f"{path.name} line {number}", "fix or remove it")
        except UserError as error:
            yield f"line {number}", error


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    with opened(path, CURE) as file:
        reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        for row in reader:
            where = f"line {reader.line_num}"
            more = UserError(f"{path.name} {where} has more cells than the header; quote texts with commas")
            yield where, more if None in row else row


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    import pyarrow.parquet

    with opened(path, CURE) as file:
        try:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"--data {path} is not whole Parquet ({reason(error)}); save it again") from None


def _dataset(data: str) -> Iterator[tuple[str, dict[str, Any] | UserError, str | None]]:
    name, _, config = data.partition(":")
    cache = mirror_cache(name)
    try:
        loaded = datasets.load_dataset(name, config or None, **({"cache_dir": cache} if cache else {}))
    except Exception as error:  # whatever a data set's files make the library raise
        raise UserError(
            f"--data {data} is no file and cannot be loaded as a data set ({type(error).__name__}: {reason(error)}); "
            "give a JSONL, CSV or Parquet file, or ID:CONFIG"
        ) from None
    alone = len(loaded) == 1
    for split, rows in loaded.items():
        for number, row in enumerate(rows, 1):
            known = split if split in SPLITS and not alone else None
            if known or alone:
                yield f"{name} {split} row {number}", row, known
