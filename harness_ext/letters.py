"""The filter ``letter_softmax``: log-likelihoods of a question's letters to probabilities over them (paper Eq 1)."""

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter
from numpy.typing import NDArray

from harness_ext.calibration import letter_log_softmax
from harness_ext.errors import ScoringError
from harness_ext.prompts import LETTERS

logger = logging.getLogger(__name__)

#: Two letters may tie by chance in a question or two in half precision, not in as many as this.
TIES = 10
#: Half-precision rounding may lift the sum of the letters' probabilities this far above 1.
MASS_LIMIT = 1.05


class Letter(NamedTuple):
    """A letter of a question, as the model scored it."""

    #: Over the question's own letters, in [0, 1].
    probability: float
    #: Its natural logarithm.
    log_probability: float
    #: The backend's own, over its whole vocabulary; no temperature.
    loglikelihood: float


@register_filter("letter_softmax")
class LetterSoftmax(Filter):
    """Turns each question's letter log-likelihoods into :class:`Letter` tuples.

    Args:
        temperature: The log-likelihoods are divided by it; finite and above 0.

    Raises:
        ScoringError: Another temperature.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        usable = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not usable or not math.isfinite(temperature) or temperature <= 0:
            raise ScoringError(
                f"letter_softmax has temperature {temperature!r}; the task's YAML must give a finite number above 0"
            )
        self.temperature = float(temperature)

    def apply(self, resps: Sequence[Any], docs: Sequence[dict[str, Any]]) -> list[Letter]:
        """Score all questions of a task.

        Args:
            resps: One entry a letter, ``(loglikelihood, is_greedy)`` first in it; a question's entries in a row.
            docs: The question of each entry, the same object for all of its letters.

        Returns:
            A ``Letter`` for each entry, in the same order.

        Raises:
            ScoringError: The backend gave no finite log-likelihood, or ones that tell no letters apart.
        """
        sizes = [len(list(group)) for _, group in itertools.groupby(docs, key=id)]
        rows = np.full((len(sizes), max(sizes)), np.nan)
        present = np.arange(rows.shape[1]) < np.asarray(sizes)[:, None]
        rows[present] = [
            loglikelihood_of(resp, str(doc.get("question"))) for resp, doc in zip(resps, docs, strict=True)
        ]
        check_told_apart(rows)
        log_probs = letter_log_softmax(rows, self.temperature)
        columns = (np.exp(log_probs)[present], log_probs[present], rows[present])
        return [Letter(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def loglikelihood_of(resp: Any, question: str) -> float:
    """The log-likelihood in a backend's response to a request of ``question``.

    Raises:
        ScoringError: There is none, or it is NaN or infinite; the message quotes the question.
    """
    answer = resp[0] if isinstance(resp, (list, tuple)) and resp else None
    value = answer[0] if isinstance(answer, (list, tuple)) and answer else None
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise ScoringError(
        f"the backend gave {resp!r} and no finite log-likelihood for question "
        f"{question[:80]!r}; use a backend that returns log-likelihoods, or another dtype"
    )


def check_told_apart(loglikelihoods: NDArray[np.float64]) -> None:
    """Refuse scores that cannot come from a model that tells the letters apart.

    Args:
        loglikelihoods: Shape (N, K), NaN where a question lacks the letter.

    Raises:
        ScoringError: All letters of all questions have one value, or two letters are alike in each of at least
            ``TIES`` questions.
    """
    if np.all(np.isnan(loglikelihoods) | (loglikelihoods == loglikelihoods[:, :1])):
        raise ScoringError(
            f"the backend gave all letters of each of the {len(loglikelihoods)} questions the same log-likelihood "
            f"(question 0: {loglikelihoods[0, 0].item()!r}); it does not score them"
        )
    for first, second in itertools.combinations(range(loglikelihoods.shape[1]), 2):
        both = loglikelihoods[~np.isnan(loglikelihoods[:, second])]
        if len(both) >= TIES and np.array_equal(both[:, first], both[:, second]):
            raise ScoringError(
                f"letters {LETTERS[first]} and {LETTERS[second]} have the same log-likelihood in all {len(both)} "
                "questions, so they share a token; run `python -m calibtune doctor --model M --tasks T`"
            )
    mass = np.nansum(np.exp(loglikelihoods), axis=1)
    if mass.max() > MASS_LIMIT:
        logger.warning(
            "question %d: its letters' probabilities sum to %.3f; the backend's values are no log-likelihoods",
            int(mass.argmax()),
            mass.max(),
        )
