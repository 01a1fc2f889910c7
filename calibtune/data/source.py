"""Load the questions that a spec names: harness tasks, and tasks made from a file or data set of one's own."""

from __future__ import annotations

from typing import Any

import datasets

from calibtune.data.letter_tasks import as_letters
from calibtune.data.rows import read_questions
from calibtune.data.tasks import Index, load_tasks, task_manager
from calibtune.errors import UserError
from calibtune.spec import QuestionSpec, data_name
from harness_ext.task import LetterTask


def load_questions(spec: QuestionSpec) -> tuple[Index, list[Any]]:
    """Load the tasks of a spec.

    Returns:
        The index, which gives the same tasks for ``spec.names``, and the tasks with groups opened.

    Raises:
        UserError: A task is unknown or cannot be loaded, or the data have bad rows.
    """
    if len(set(spec.names)) < len(spec.names):
        raise UserError(f"{spec.names[-1]} is named twice; rename the file of --data, or name each task once")
    index = task_manager(spec.tasks, spec.include_path)
    if spec.data:
        index.add(data_task(spec.data, spec.columns, spec.skip_bad_rows))
    tasks = load_tasks(spec.names, index=index)
    if spec.as_letters:
        index.change(spec.names, as_letters)
        tasks = load_tasks(spec.names, index=index)
    return index, tasks


def data_task(data: str, columns: str = "", skip_bad_rows: bool = False) -> LetterTask:
    """Make a letter task from a file or data set of one's own.

    Raises:
        UserError: See :func:`calibtune.data.rows.read_questions`.
    """
    rows = read_questions(data, columns, skip_bad_rows)
    if not {"validation", "test"} & rows.keys():
        raise UserError(f"--data {data} has no question to evaluate; give some rows the split test")

    def given(**_: Any) -> datasets.DatasetDict:
        return rows

    config: dict[str, Any] = {"task": data_name(data), "custom_dataset": given, "dataset_path": data}
    keys = {"training_split": "train", "validation_split": "validation", "test_split": "test", "fewshot_split": "train"}
    return LetterTask(config | {key: split for key, split in keys.items() if split in rows})
