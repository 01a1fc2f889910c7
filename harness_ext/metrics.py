"""Compute a letter task's metrics for each question and aggregate them for the harness's table."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.calibration import brier_rows, top
from harness_ext.errors import UserError
from harness_ext.intervals import ece_interval
from harness_ext.letters import Letter
from harness_ext.ragged import ragged
from harness_ext.registry import BINS, ECES

#: One question's input to an ECE: its letters' probabilities and the index of the right letter.
Item = tuple[list[float], int]


def process_results(doc: Mapping[str, Any], results: Sequence[Letter]) -> dict[str, Any]:
    """Compute the metrics of one question.

    Args:
        doc: The question.
        results: One letter for each option, from the filter ``letter_softmax``.

    Returns:
        ``acc``, ``nll`` (nats), ``brier`` and ``letter_mass`` as numbers that the harness averages,
        and an :data:`Item` for each ECE and for both ends of its interval.

    Raises:
        UserError: The question has no right answer, or ``results`` is not one ``Letter`` for
            each option.
    """
    count, gold = len(doc["choices"]), doc["gold"]
    question = f"question {doc['question'][:80]!r}"
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < count:
        raise UserError(
            f"{question} has no right answer: {gold!r} is not an index of its {count} options; fix or remove the row"
        )
    if len(results) != count or not all(isinstance(letter, Letter) for letter in results):
        raise UserError(
            f"{question} has {count} options and the scores {results!r}; score it with the filter letter_softmax"
        )
    probabilities = [letter.probability for letter in results]
    probs, right = np.asarray([probabilities]), np.asarray([gold])
    item: Item = (probabilities, gold)
    return {
        "acc": float(top(probs)[1][0] == gold),
        "nll": -results[gold].log_probability,
        "brier": float(brier_rows(probs, right)[0]),
        "letter_mass": float(np.exp([letter.loglikelihood for letter in results]).sum()),
        **{f"{ece}_{bins}{end}": item for ece in ECES for bins in BINS for end in ("", "_low", "_high")},
    }


def as_arrays(items: Sequence[Item]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the items as probabilities (N, K), NaN for absent letters, and right answers (N,)."""
    return ragged(values for values, _ in items), np.asarray([gold for _, gold in items], dtype=np.int64)


@functools.lru_cache(maxsize=8)
def _ends(ece: str, bins: int, probs: bytes, gold: bytes) -> tuple[float, float]:
    # The harness asks for each end separately with the same items: compute the interval only once.
    right = np.frombuffer(gold, dtype=np.int64)
    interval = ece_interval(ECES[ece](np.frombuffer(probs).reshape(len(right), -1), right, bins))
    return interval.low, interval.high


def _estimate(ece: str, bins: int, items: Sequence[Item]) -> float:
    return ECES[ece](*as_arrays(items), bins).ece()


def _end(ece: str, bins: int, end: int, items: Sequence[Item]) -> float:
    probs, gold = as_arrays(items)
    return _ends(ece, bins, probs.tobytes(), gold.tobytes())[end]


conf_ece_10 = functools.partial(_estimate, "conf_ece", 10)
conf_ece_14 = functools.partial(_estimate, "conf_ece", 14)
cw_ece_10 = functools.partial(_estimate, "cw_ece", 10)
cw_ece_14 = functools.partial(_estimate, "cw_ece", 14)
conf_ece_10_low = functools.partial(_end, "conf_ece", 10, 0)
conf_ece_10_high = functools.partial(_end, "conf_ece", 10, 1)
conf_ece_14_low = functools.partial(_end, "conf_ece", 14, 0)
conf_ece_14_high = functools.partial(_end, "conf_ece", 14, 1)
cw_ece_10_low = functools.partial(_end, "cw_ece", 10, 0)
cw_ece_10_high = functools.partial(_end, "cw_ece", 10, 1)
cw_ece_14_low = functools.partial(_end, "cw_ece", 14, 0)
cw_ece_14_high = functools.partial(_end, "cw_ece", 14, 1)
