"""The filter ``letter_softmax``: log-likelihoods of a question's letters to probabilities over them (paper Eq 1)."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter

from harness_ext.calibration import letter_log_softmax
from harness_ext.errors import UserError
from harness_ext.orders import averaged
from harness_ext.ragged import ragged
from harness_ext.sanity import check_scored, check_told_apart, is_unseen, warn_of_ties


class Letter(NamedTuple):
    """Hold a letter of a question, as the model scored it."""

    #: Over the question's own letters, in [0, 1].
    probability: float
    #: Its natural logarithm.
    log_probability: float
    #: The backend's own, over its whole vocabulary; no temperature. Of several orders their average.
    loglikelihood: float


@register_filter("letter_softmax")
class LetterSoftmax(Filter):
    """Turn each question's letter log-likelihoods into :class:`Letter` tuples.

    Args:
        temperature: The log-likelihoods are divided by it; finite and above 0.

    Raises:
        UserError: Another temperature.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        usable = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not usable or not math.isfinite(temperature) or temperature <= 0:
            raise UserError(
                f"letter_softmax has temperature {temperature!r}; the task's YAML must give a finite number above 0"
            )
        self.temperature = float(temperature)

    def apply(self, resps: Sequence[Any], docs: Sequence[dict[str, Any]]) -> list[Letter]:
        """Score all questions of a task.

        Args:
            resps: One entry a letter, ``(loglikelihood, is_greedy)`` first in it; a question's entries in a row. Of a
                question asked in several orders one entry an option, with a response for each order.
            docs: The question of each entry, the same object for all of its letters.

        Returns:
            A ``Letter`` for each entry, in the same order.

        Raises:
            UserError: The backend gave no finite log-likelihood, or ones that tell no letters apart.
        """
        sizes = [len(list(group)) for _, group in itertools.groupby(docs, key=id)]
        answers = zip(resps, docs, strict=True)
        asked = [_by_order(list(itertools.islice(answers, size))) for size in sizes]
        rows = ragged([averaged(question).tolist() for question in asked])
        present = ~np.isnan(rows)
        check_scored(rows)
        # Letters that the model cannot tell apart are different options in each order.
        unseen = np.zeros(rows.shape, dtype=bool)
        unseen[present] = [is_unseen(resp[0]) for resp in resps]
        check_told_apart(ragged([question[0] for question in asked]), unseen)
        if self.temperature == 1.0:
            # A scaled pipeline has the ties of the raw one beside it.
            warn_of_ties(rows[~unseen.any(axis=1)], "letter_softmax")
        log_probs = letter_log_softmax(rows, self.temperature)
        columns = (np.exp(log_probs)[present], log_probs[present], rows[present])
        return [Letter(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _by_order(answers: Sequence[tuple[Any, dict[str, Any]]]) -> list[list[float]]:
    """Return a question's log-likelihoods, a row for each order in which it was asked.

    Where several processes evaluate, the harness repeats the last letter of some; such repetitions are no orders.
    """
    orders = range(max(1, min(len(resp) for resp, _ in answers)))
    return [[loglikelihood_of(resp, str(doc.get("question")), order) for resp, doc in answers] for order in orders]


def loglikelihood_of(resp: Sequence[Any], question: str, order: int) -> float:
    """Return the log-likelihood in a backend's response to a request of ``question``, in one of its orders.

    Raises:
        UserError: There is none, or it is NaN or infinite; the message quotes the question.
    """
    answer = resp[order] if resp else None
    value = answer[0] if isinstance(answer, (list, tuple)) and answer else None
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    raise UserError(
        f"the backend gave {resp!r} and no finite log-likelihood for question "
        f"{question[:80]!r}; use a backend that returns log-likelihoods, or another dtype"
    )
