"""One row of each data set as a document of ours: ``question``, ``choices``, ``gold`` and where the row came from."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config

from harness_ext.errors import ScoringError
from harness_ext.prompts import check_choices

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
#: Few-shot examples are drawn from this many first rows: enough for any prompt, and MedMCQA's 182,000 stay unread.
SHOTS = 1000


def mirror_cache(path: str) -> str | None:
    """Where `datasets` may cache a data set that a folder below the working directory mirrors.

    Its own cache is keyed by the relative path alone, so another mirror, or the same one with a row mended, would be
    read from the old cache.

    Args:
        path: The data set's path, such as ``allenai/ai2_arc``.

    Returns:
        A cache folder for the mirror's files as they are now, or None where there is no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "mirrors" / hashlib.sha256(repr(state).encode()).hexdigest())


def document(question: Any, choices: Any, gold: Any, where: str) -> dict[str, Any]:
    """A checked document.

    Args:
        question: The question's text; outer blanks are removed.
        choices: The options' texts; outer blanks are removed.
        gold: Index of the right option.
        where: What to call the row in errors, such as ``ai2_arc test row 3 (id Q7)``.

    Raises:
        ScoringError: No question, options that letters cannot name apart, or a right answer that is not one of them.
    """
    if not isinstance(question, str) or not question.strip():
        raise ScoringError(f"{where} has no question ({question!r}); mend or remove the row")
    if not isinstance(choices, Sequence) or not all(isinstance(choice, str) for choice in choices):
        raise ScoringError(f"{where} has options that are not texts ({choices!r}); mend or remove the row")
    stripped = [choice.strip() for choice in choices]
    check_choices(stripped, where)
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(stripped):
        raise ScoringError(
            f"{where} has no right answer: {gold!r} is not an index of its {len(stripped)} options; "
            "evaluate a labeled split or mend the row"
        )
    return {"question": question.strip(), "choices": stripped, "gold": gold}


def arc_row(row: Row, where: str) -> dict[str, Any]:
    """ARC: options under letters or digits, 3 to 5 of them; shown under letters here whatever they were."""
    labels, key = row["choices"]["label"], row["answerKey"]
    if labels.count(key) != 1:
        raise ScoringError(f"{where} has no right answer: answerKey {key!r} is not one of {labels!r}; mend the row")
    return document(row["question"], row["choices"]["text"], labels.index(key), where)


def openbookqa_row(row: Row, where: str) -> dict[str, Any]:
    """OpenBookQA: ARC's layout, with the question under another name."""
    return arc_row({**row, "question": row["question_stem"]}, where)


def medmcqa_row(row: Row, where: str) -> dict[str, Any]:
    """MedMCQA: four columns of options; ``cop`` is -1 in its unlabeled test split."""
    return document(row["question"], [row["opa"], row["opb"], row["opc"], row["opd"]], row["cop"], where)


def mmlu_row(row: Row, where: str) -> dict[str, Any]:
    """MMLU: a list of options and an index."""
    return {**document(row["question"], row["choices"], row["answer"], where), "subject": row["subject"]}


def convert(
    dataset: datasets.Dataset, to_document: Callable[[Row, str], dict[str, Any]], left_out: Collection[int] = ()
) -> list[dict[str, Any]]:
    """All rows of a split as documents, but for those at the positions ``left_out``.

    Raises:
        ScoringError: The first row that cannot be scored, by split, position and id.
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
    """Name the row that a field is read from, where it has none such or one of another shape.

    Raises:
        ScoringError: With the row.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ScoringError(
            f"{where} lacks a field or holds another kind of value there ({error!r} in {str(row)[:200]}); "
            "mend or remove the row"
        ) from error


def name_of(dataset: datasets.Dataset, position: int, row: Row) -> str:
    """What errors call a row: data set, split, position from 0, id where it has one."""
    name = dataset.info.dataset_name or "data set"
    ident = f" (id {row['id']})" if "id" in row else ""
    return f"{name} {dataset.split} row {position}{ident}"


def repeats(dataset: datasets.Dataset, choices_of: Callable[[Row], Sequence[str]]) -> set[int]:
    """Positions of the rows that have the same option twice, which are to be left out; named in a warning.

    MMLU's test split, OpenBookQA's training split and others hold a few questions with the same option twice, one of
    them perhaps the right one. No letter is the answer to those, and refusing them would refuse the whole set.
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
            dataset.split,
            len(repeated),
            len(dataset),
            sorted(repeated),
        )
    return repeated


def arc(dataset: datasets.Dataset) -> datasets.Dataset:
    """``process_docs`` of ARC-Challenge."""
    return datasets.Dataset.from_list(convert(dataset, arc_row))


def openbookqa(dataset: datasets.Dataset) -> datasets.Dataset:
    """``process_docs`` of OpenBookQA."""
    return datasets.Dataset.from_list(convert(dataset, openbookqa_row, repeats(dataset, arc_choices)))


def medmcqa(dataset: datasets.Dataset) -> datasets.Dataset:
    """``process_docs`` of MedMCQA."""
    return datasets.Dataset.from_list(convert(dataset, medmcqa_row, repeats(dataset, medmcqa_choices)))


def medmcqa_shots(dataset: datasets.Dataset) -> datasets.Dataset:
    """Few-shot documents of MedMCQA, from its first training rows."""
    return medmcqa(dataset.select(range(min(SHOTS, len(dataset)))))


def mmlu(dataset: datasets.Dataset) -> datasets.Dataset:
    """``process_docs`` of MMLU, of one subject or of all."""
    return datasets.Dataset.from_list(convert(dataset, mmlu_row, repeats(dataset, mmlu_choices)))


def arc_choices(row: Row) -> Sequence[str]:
    """The options of an ARC or OpenBookQA row."""
    return row["choices"]["text"]


def medmcqa_choices(row: Row) -> Sequence[str]:
    """The options of a MedMCQA row."""
    return [row["opa"], row["opb"], row["opc"], row["opd"]]


def mmlu_choices(row: Row) -> Sequence[str]:
    """The options of an MMLU row."""
    return row["choices"]
