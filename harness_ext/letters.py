"""The filter ``letter_softmax``: log-likelihoods of the option letters to probabilities (paper Eq 1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter

from harness_ext.binning import FloatArray
from harness_ext.calibration import letter_log_softmax, validate_rows
from harness_ext.errors import ScoringError
from harness_ext.prompts import LETTERS
from harness_ext.run import current_run, letter_tokens, warn_of_cut_prompts

#: Fewer questions than this may agree by chance in low precision.
FEWEST_FOR_A_VERDICT = 5


class Letter(NamedTuple):
    """What the filter says of one option of one question; logged by the harness as a list of three numbers."""

    #: Softmax over the question's own letters, after the temperature; in [0, 1].
    probability: float
    #: Its natural logarithm, which does not underflow.
    log_probability: float
    #: The model's own log-likelihood of the letter, before the temperature.
    loglikelihood: float


@register_filter("letter_softmax")
class LetterSoftmax(Filter):
    """Softmax over each question's own letters, with a temperature.

    Several pipelines with other temperatures can score the same forward passes. In YAML::

        filter_list:
          - name: none
            filter: [{function: letter_softmax, temperature: 1.0}]

    Args:
        temperature: T > 0, 1.0 for the model as it is.

    Raises:
        ScoringError: T is not a positive number; so does ``apply`` for answers that are no log-likelihoods.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < np.inf:
            raise ScoringError(f"letter_softmax: temperature is {temperature!r}; give a finite number above 0")
        self.temperature = float(temperature)

    def apply(self, resps: Iterable[Sequence[Any]], docs: Sequence[dict[str, Any]]) -> list[Letter]:
        """Turn the answers to all letters of all questions into :class:`Letter` entries, in the same order."""
        resps = list(resps)
        check_requests()
        # The harness gives every option of a question the same document object.
        sizes = [len(list(group)) for _, group in itertools.groupby(map(id, docs))]
        rows = np.repeat(np.arange(len(sizes)), sizes)
        columns = np.concatenate([np.arange(size) for size in sizes])
        loglikelihoods = np.full((len(sizes), max(sizes)), np.nan)
        for row, column, response in zip(rows, columns, resps, strict=True):
            loglikelihoods[row, column] = _loglikelihood(response, row, column)
        check_signal(loglikelihoods)
        log_probs = letter_log_softmax(loglikelihoods, self.temperature)
        picked = (np.exp(log_probs)[rows, columns], log_probs[rows, columns], loglikelihoods[rows, columns])
        return [Letter(*numbers) for numbers in zip(*(array.tolist() for array in picked), strict=True)]


def _loglikelihood(response: Sequence[Any], row: int, column: int) -> float:
    answer = response[0]
    value = answer[0] if isinstance(answer, (tuple, list)) and answer else answer
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not np.isfinite(value):
        raise ScoringError(
            f"question {row}, letter {LETTERS[column]}: the backend answered {answer!r}, which is no finite "
            "log-likelihood; use a backend and precision that return one for every letter"
        )
    return float(value)


def check_signal(loglikelihoods: FloatArray) -> None:
    """Refuse answers that no language model gives.

    Args:
        loglikelihoods: Shape (N, K), NaN where a letter is absent.

    Raises:
        ScoringError: Every letter of every question has one and the same value, or two letters have equal values in
            all questions.
    """
    validate_rows(loglikelihoods, np.zeros(len(loglikelihoods), dtype=np.int64))
    if np.nanmax(loglikelihoods) == np.nanmin(loglikelihoods):
        raise ScoringError(
            f"the backend gave {np.nanmax(loglikelihoods)!r} for every letter of all {len(loglikelihoods)} questions; "
            "it does not score continuations"
        )
    if len(loglikelihoods) < FEWEST_FOR_A_VERDICT:
        return
    for a, b in itertools.combinations(range(loglikelihoods.shape[1]), 2):
        both = loglikelihoods[~np.isnan(loglikelihoods[:, b])]
        if len(both) >= FEWEST_FOR_A_VERDICT and (both[:, a] == both[:, b]).all():
            raise ScoringError(
                f"the letters {LETTERS[a]} and {LETTERS[b]} have equal log-likelihoods in all {len(both)} questions: "
                "they share a token, or the backend does not tell them apart"
            )


def check_requests() -> None:
    """Check the prompts as the running model saw them: letters are single distinct tokens, and how many were cut.

    Does nothing where the backend has no tokenizer of its own (an API).

    Raises:
        ScoringError: See :func:`harness_ext.run.letter_tokens`.
    """
    run = current_run()
    if run is None:
        return
    questions = [[inst.args[:2] for inst in group] for _, group in itertools.groupby(run.task.instances, _question)]
    longest = max(questions, key=len)
    letter_tokens(longest[0][0], [continuation for _, continuation in longest], run.model)
    warn_of_cut_prompts(run.task.task_name, [question[0] for question in questions], run.model)


def _question(instance: Any) -> int:
    return id(instance.doc)
