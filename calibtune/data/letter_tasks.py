"""Ask any multiple-choice task of the harness the way our letter tasks are asked."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import datasets

from calibtune.data.rows import Columns, answer_index
from calibtune.data.tasks import explained
from calibtune.errors import UserError
from harness_ext.documents import SHOTS, document, split_of
from harness_ext.orders import SUFFIX as ORDERS
from harness_ext.orders import Orders
from harness_ext.prompts import LETTERS
from harness_ext.task import LetterTask, OrderedTask, letter_template

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=LetterTask)
#: Suffix of the name of a task with a temperature, as in the YAMLs that a fit writes.
SUFFIX = "_scaled"
#: Suffix of the name of a task that is asked with our prompt and letters.
AS_LETTERS = "_letters"
#: Where a task's documents come from.
DATA = (
    "custom_dataset",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "metadata",
)
#: What makes our metrics of a task's letters.
SCORING = ("class", "process_results", "metric_list", "filter_list")
#: Questions of a task that are looked at.
LOOKED_AT = 8


def pipelines(temperature: float) -> list[dict[str, Any]]:
    """Return the filter pipelines ``none``, with the letters as they are, and ``scaled``, divided by a temperature."""
    return [
        {"name": "none", "filter": [{"function": "letter_softmax"}]},
        {"name": "scaled", "filter": [{"function": "letter_softmax", "temperature": temperature}]},
    ]


def scaled(task: Any, temperature: float) -> LetterTask:
    """Return a task that scores the same requests raw and with a temperature, in one pass.

    Args:
        task: Any loaded task that scores letters: ours, a user's own, or one of the harness.
        temperature: Divides the letters' log-likelihoods; above 0.

    Raises:
        UserError: It does not score letters.
    """
    kind = type(task) if isinstance(task, LetterTask) else LetterTask
    changes = {"task": task.task_name + SUFFIX, "filter_list": pipelines(temperature)}
    return _changed(task, kind, changes, "a temperature applies")


def ordered(task: Any, orders: Orders) -> LetterTask:
    """Return a task that asks the same questions in so many orders of their options; one as it is where it does so.

    Args:
        task: Any loaded task that scores letters.
        orders: The number of orders.

    Raises:
        UserError: It does not score letters.
    """
    if orders == (task.orders if isinstance(task, OrderedTask) else 1):
        return task
    metadata = {**(task.config.metadata or {}), "orders": orders}
    name = task.task_name if isinstance(task, OrderedTask) else task.task_name + ORDERS
    return _changed(task, OrderedTask, {"task": name, "metadata": metadata}, "--orders applies")


def _changed(task: Any, kind: type[Kind], changes: dict[str, Any], what: str) -> Kind:
    if not scores_letters(task):
        raise UserError(
            f"--tasks {task.task_name} does not score the letters A, B, ..., to which {what}; give --as-letters"
        )
    config = task.config.to_dict(keep_callable=True)
    if not isinstance(task, LetterTask):
        config |= {name: letter_template()[name] for name in SCORING}
    with explained(task.task_name):
        return kind({**config, **changes})


def as_letters(task: Any) -> LetterTask:
    """Return a task that asks another one's questions with our prompt and letters; ours are returned as they are.

    The question is the row's own where the task scores letters, since its prompt holds the options; else the task's
    prompt without ``Question:`` and ``Answer:``, since some tasks have a passage in it. Rows that cannot be asked by
    letter are left out and counted.

    Args:
        task: Any loaded multiple-choice task with 2 to 26 options.

    Raises:
        UserError: It is not multiple choice, or none of its rows can be asked by letter.
    """
    if isinstance(task, LetterTask):
        return task
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"--tasks {task.task_name} is {task.OUTPUT_TYPE}; --as-letters takes multiple_choice tasks")
    to_document = _from_row if scores_letters(task) else _from_texts

    def process_docs(rows: datasets.Dataset) -> datasets.Dataset:
        found = task.config.process_docs(rows) if task.config.process_docs else rows
        return _documents(task, found, to_document)

    def shots(rows: datasets.Dataset) -> datasets.Dataset:
        return process_docs(rows.select(range(min(SHOTS, len(rows)))))

    config = {name: value for name in DATA if (value := getattr(task.config, name)) is not None}
    config |= {"task": task.task_name + AS_LETTERS, "process_docs": process_docs}
    if split := task.config.fewshot_split or task.config.training_split:
        config |= {"fewshot_split": split, "fewshot_config": {"sampler": "first_n", "process_docs": shots}}
    with explained(task.task_name):
        return LetterTask(config)


def _documents(
    task: Any, rows: datasets.Dataset, to_document: Callable[[Any, dict[str, Any], str], dict[str, Any]]
) -> datasets.Dataset:
    docs, problems = [], []
    for number, row in enumerate(rows):
        try:
            docs.append(to_document(task, row, f"{task.task_name} {split_of(rows)} row {number}"))
        except UserError as error:
            problems.append(str(error))
    if not docs:
        raise UserError(f"--as-letters: no row of {task.task_name} can be asked by letter; the first: {problems[0]}")
    if problems:
        logger.warning(
            "%s: %d of %d rows cannot be asked by letter and are left out, the first: %s",
            task.task_name,
            len(problems),
            len(rows),
            problems[0],
        )
    return datasets.Dataset.from_list(docs)


def _from_row(task: Any, row: dict[str, Any], where: str) -> dict[str, Any]:
    columns = Columns.of(list(row))
    choices, _ = columns.options(row)
    target = task.doc_to_target(row)
    return document(row[columns.question], choices, answer_index(target, choices, LETTERS), where)


def _from_texts(task: Any, row: dict[str, Any], where: str) -> dict[str, Any]:
    text, choices, target = task.doc_to_text(row), task.doc_to_choice(row), task.doc_to_target(row)
    if isinstance(text, str):
        text = re.sub(r"^\s*Question:|Answer:\s*$", "", text)
    return document(text, choices, answer_index(target, choices, LETTERS), where)


def one_question(question: str, choices: Sequence[str]) -> LetterTask:
    """Return a task of a single question, whose right answer is not known.

    Raises:
        UserError: It cannot be asked by letter.
    """
    doc = document(question, list(choices), 0, f"question {question[:80]!r}")

    def given(**_: Any) -> datasets.DatasetDict:
        return datasets.DatasetDict({"test": datasets.Dataset.from_list([doc])})

    return LetterTask({"task": "one_question", "custom_dataset": given, "test_split": "test"})


def scores_letters(task: Any) -> bool:
    """Return whether a task's options are the letters A, B, ... in this order."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return False
    docs = [task.eval_docs[i] for i in range(min(LOOKED_AT, len(task.eval_docs)))]
    with explained(task.task_name):
        return all(_are_letters(task.doc_to_choice(doc)) for doc in docs)


def _are_letters(choices: Sequence[str]) -> bool:
    return [str(choice).strip() for choice in choices] == list(LETTERS[: len(choices)])
