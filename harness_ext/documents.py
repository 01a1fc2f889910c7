"""Convert rows of the data sets to documents with ``question``, ``choices`` and ``gold``."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config

from harness_ext.errors import UserError
from harness_ext.prompts import check_choices

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
#: Few-shot examples come from this many first rows: enough for any prompt, without converting all
#: 182,000 training rows of MedMCQA.
SHOTS = 1000


def mirror_cache(path: str) -> str | None:
    """Return a cache folder for a data set that is read from a local folder of the same name.

    The cache of `datasets` is keyed by the relative path alone: without a folder of its own, a
    different or changed local copy would be served from the old cache.

    Args:
        path: The data set's path, such as ``allenai/ai2_arc``.

    Returns:
        A cache folder named after the state of the local files, or None if there is no local folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "mirrors" / hashlib.sha256(repr(state).encode()).hexdigest())


def document(question: Any, choices: Any, gold: Any, where: str) -> dict[str, Any]:
    """Return a checked document.

    Args:
        question: Text of the question; surrounding whitespace is removed.
        choices: Texts of the options; surrounding whitespace is removed.
        gold: Index of the right option.
        where: Name of the row for errors, such as ``ai2_arc test row 3 (id Q7)``.

    Returns:
        ``question``, ``choices`` and ``gold``.

    Raises:
        UserError: The question is missing, the options fail
            :func:`harness_ext.prompts.check_choices`, or ``gold`` is not an index of an option.
    """
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where} has no question ({question!r}); fix or remove the row")
    if not isinstance(choices, Sequence) or not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"{where} has options that are not texts ({choices!r}); fix or remove the row")
    stripped = [choice.strip() for choice in choices]
    check_choices(stripped, where)
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(stripped):
        raise UserError(
            f"{where} has no right answer: {gold!r} is not an index of its {len(stripped)} options; "
            "evaluate a labeled split or fix the row"
        )
    return {"question": question.strip(), "choices": stripped, "gold": gold}


def arc_row(row: Row, where: str) -> dict[str, Any]:
    """Convert a row of ARC, which has 3 to 5 options labeled with letters or digits."""
    labels, key = row["choices"]["label"], row["answerKey"]
    if labels.count(key) != 1:
        raise UserError(f"{where} has no right answer: answerKey {key!r} is not one of {labels!r}; fix the row")
    return document(row["question"], row["choices"]["text"], labels.index(key), where)


def openbookqa_row(row: Row, where: str) -> dict[str, Any]:
    """Convert a row of OpenBookQA, which differs from ARC only in the name of the question field."""
    return arc_row({**row, "question": row["question_stem"]}, where)


def medmcqa_row(row: Row, where: str) -> dict[str, Any]:
    """Convert a row of MedMCQA, which has four option columns.

    In the unlabeled test split the right answer ``cop`` is -1, which is an error.
    """
    return document(row["question"], [row["opa"], row["opb"], row["opc"], row["opd"]], row["cop"], where)


def mmlu_row(row: Row, where: str) -> dict[str, Any]:
    """Convert a row of MMLU, which has a list of options and the index of the right one."""
    return {**document(row["question"], row["choices"], row["answer"], where), "subject": row["subject"]}


def convert(
    dataset: datasets.Dataset, to_document: Callable[[Row, str], dict[str, Any]], left_out: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Convert all rows of a split, except for the positions ``left_out``.

    Args:
        dataset: The split.
        to_document: Converter of a row, which takes the row and its name for errors.
        left_out: Positions of the rows to skip.

    Raises:
        UserError: A row cannot be scored; the message names split, position and id.
    """
    documents = []
    for position, row in enumerate(dataset.to_list()):
        if position not in left_out:
            where = name_of(dataset, position, row)
            with whole_row(row, where):
                documents.append(to_document(row, where))
    return documents


@contextlib.contextmanager
def whole_row(row: Row, where: str) -> Iterator[None]:
    """Raise an error that names the row if the block fails to read one of its fields.

    Raises:
        UserError: A field is missing or has an unexpected type.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{where} lacks a field or has an unexpected type in one ({error!r} in {str(row)[:200]}); "
            "fix or remove the row"
        ) from error


def name_of(dataset: datasets.Dataset, position: int, row: Row) -> str:
    """Return a row's name for errors: data set, split, position from 0, and id if it has one."""
    name = dataset.info.dataset_name or "data set"
    ident = f" (id {row['id']})" if "id" in row else ""
    return f"{name} {split_of(dataset)} row {position}{ident}"


def split_of(dataset: datasets.Dataset) -> str:
    """Return the name of a data set's split; lm_eval 0.5 asks `datasets` for ``test[:]``, which then is the name."""
    return str(dataset.split).removesuffix("[:]")


def repeats(dataset: datasets.Dataset, choices_of: Callable[[Row], Sequence[str]]) -> set[int]:
    """Return the positions of rows that have the same option twice, and log a warning.

    MMLU's test split, OpenBookQA's training split and others have a few such questions. They have
    no unique right letter. An error would make the whole data set unusable, so they are left out.
    """
    repeated = set()
    for position, row in enumerate(dataset.to_list()):
        with whole_row(row, name_of(dataset, position, row)):
            choices = [str(choice).strip() for choice in choices_of(row)]
        if len(set(filter(None, choices))) < len(list(filter(None, choices))):
            repeated.add(position)
    if repeated:
        logger.warning(
            "%s %s: %d of %d questions have the same option twice and are left out, rows %s",
            dataset.info.dataset_name,
            split_of(dataset),
            len(repeated),
            len(dataset),
            sorted(repeated),
        )
    return repeated


def arc(dataset: datasets.Dataset) -> datasets.Dataset:
    """Convert ARC-Challenge; this is the task's ``process_docs``."""
    return datasets.Dataset.from_list(convert(dataset, arc_row))


def openbookqa(dataset: datasets.Dataset) -> datasets.Dataset:
    """Convert OpenBookQA; this is the task's ``process_docs``."""
    return datasets.Dataset.from_list(convert(dataset, openbookqa_row, repeats(dataset, arc_choices)))


def medmcqa(dataset: datasets.Dataset) -> datasets.Dataset:
    """Convert MedMCQA; this is the task's ``process_docs``."""
    return datasets.Dataset.from_list(convert(dataset, medmcqa_row, repeats(dataset, medmcqa_choices)))


def medmcqa_shots(dataset: datasets.Dataset) -> datasets.Dataset:
    """Convert MedMCQA's first :data:`SHOTS` training rows for few-shot examples."""
    return medmcqa(dataset.select(range(min(SHOTS, len(dataset)))))


def mmlu(dataset: datasets.Dataset) -> datasets.Dataset:
    """Convert one or all subjects of MMLU; this is the task's ``process_docs``."""
    return datasets.Dataset.from_list(convert(dataset, mmlu_row, repeats(dataset, mmlu_choices)))


def arc_choices(row: Row) -> Sequence[str]:
    """Return the options of an ARC or OpenBookQA row."""
    return row["choices"]["text"]


def medmcqa_choices(row: Row) -> Sequence[str]:
    """Return the options of a MedMCQA row."""
    return [row["opa"], row["opb"], row["opc"], row["opd"]]


def mmlu_choices(row: Row) -> Sequence[str]:
    """Return the options of an MMLU row."""
    return row["choices"]
