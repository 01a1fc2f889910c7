"""Ask any multiple-choice task of the harness the way our letter tasks are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibtune.data.tasks import explained
from calibtune.errors import UserError
from harness_ext.prompts import LETTERS
from harness_ext.task import LetterTask, letter_template

#: Suffix of the name of a task with a temperature, as in the YAMLs that a fit writes.
SUFFIX = "_scaled"
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
    if not scores_letters(task):
        raise UserError(
            f"--tasks {task.task_name} does not score the letters A, B, ..., to which a temperature applies; give a "
            "task that does"
        )
    config = task.config.to_dict(keep_callable=True)
    if not isinstance(task, LetterTask):
        config |= {name: letter_template()[name] for name in SCORING}
    config |= {"task": task.task_name + SUFFIX, "filter_list": pipelines(temperature)}
    with explained(task.task_name):
        return LetterTask(config)


def scores_letters(task: Any) -> bool:
    """Return whether a task's options are the letters A, B, ... in this order."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return False
    docs = [task.eval_docs[i] for i in range(min(LOOKED_AT, len(task.eval_docs)))]
    with explained(task.task_name):
        return all(_are_letters(task.doc_to_choice(doc)) for doc in docs)


def _are_letters(choices: Sequence[str]) -> bool:
    return [str(choice).strip() for choice in choices] == list(LETTERS[: len(choices)])
