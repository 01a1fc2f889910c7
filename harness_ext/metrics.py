"""What the harness reports for a multiple-choice letter task: the YAML's ``process_results`` and aggregations."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import BinGaps, brier_rows, classwise_gaps, confidence_gaps, top
from harness_ext.errors import ScoringError
from harness_ext.intervals import Interval, ece_interval
from harness_ext.letters import Letter

#: What one question adds to an ECE: the letters' probabilities and the index of the right one.
Item = tuple[list[float], int]
ECES = ("conf_ece_10", "conf_ece_14", "cw_ece_10", "cw_ece_14")


def process_results(doc: Mapping[str, Any], results: Sequence[Letter]) -> dict[str, Any]:
    """Score one question.

    Args:
        doc: A document with ``gold``, the index of the right letter.
        results: The filter ``letter_softmax``'s entries of the question's letters.

    Returns:
        For each metric the number that is averaged, or for an ECE and its interval's ends the :data:`Item`.

    Raises:
        ScoringError: The right answer is missing or is none of the letters, or another filter than
            ``letter_softmax`` ran.
    """
    if not all(isinstance(result, Letter) for result in results):
        raise ScoringError(f"the calibration metrics need the filter letter_softmax, but were given {results[0]!r}")
    gold = doc["gold"]
    if not isinstance(gold, int) or not 0 <= gold < len(results):
        raise ScoringError(
            f"question {str(doc.get('question'))[:80]!r}: the right answer is {gold!r}, none of its {len(results)} letters"
        )
    probs = [result.probability for result in results]
    row = np.array([probs])
    item: Item = (probs, gold)
    return {
        "acc": float(top(row)[1][0] == gold),
        "nll": -results[gold].log_probability,
        "brier": float(brier_rows(row, np.array([gold]))[0]),
        "letter_mass": float(np.exp([result.loglikelihood for result in results]).sum()),
    } | {name + end: item for name in ECES for end in ("", "_low", "_high")}


def arrays(items: Sequence[Item]) -> tuple[FloatArray, IntArray]:
    """Probabilities of shape (N, K), NaN where a question has fewer letters, and right letters of shape (N,)."""
    sizes = [len(probs) for probs, _ in items]
    if min(sizes) == max(sizes):
        probabilities = np.array([probs for probs, _ in items], dtype=np.float64)
    else:
        probabilities = np.full((len(items), max(sizes)), np.nan)
        for row, (probs, _) in enumerate(items):
            probabilities[row, : len(probs)] = probs
    return probabilities, np.array([gold for _, gold in items], dtype=np.int64)


def ece_gaps(name: str, probs: FloatArray, gold: IntArray) -> BinGaps:
    """The cells of the ECE that a metric's name asks for, such as ``cw_ece_14``."""
    kind, _, n_bins = name.rpartition("_")
    return {"conf_ece": confidence_gaps, "cw_ece": classwise_gaps}[kind](probs, gold, int(n_bins))


# The interval's two ends are metrics of their own, asked for one right after the other.
@functools.lru_cache(maxsize=2)
def _interval(name: str, rows: bytes, shape: tuple[int, int], gold: bytes) -> Interval:
    probs = np.frombuffer(rows, dtype=np.float64).reshape(shape)
    return ece_interval(ece_gaps(name, probs, np.frombuffer(gold, dtype=np.int64)))


def _aggregate(name: str, field: str, items: Sequence[Item]) -> float:
    probs, gold = arrays(items)
    if field == "estimate":
        return ece_gaps(name, probs, gold).ece()
    return float(getattr(_interval(name, probs.tobytes(), probs.shape, gold.tobytes()), field))


def conf_ece_10(items: Sequence[Item]) -> float:
    """conf-ECE (paper Eq 19) with 10 bins; the functions below are its kin, named after what they give."""
    return _aggregate("conf_ece_10", "estimate", items)


def conf_ece_10_low(items: Sequence[Item]) -> float:
    """Lower end of conf-ECE's 95 % interval, 10 bins."""
    return _aggregate("conf_ece_10", "low", items)


def conf_ece_10_high(items: Sequence[Item]) -> float:
    """Upper end of conf-ECE's 95 % interval, 10 bins."""
    return _aggregate("conf_ece_10", "high", items)


def conf_ece_14(items: Sequence[Item]) -> float:
    """conf-ECE with 14 bins."""
    return _aggregate("conf_ece_14", "estimate", items)


def conf_ece_14_low(items: Sequence[Item]) -> float:
    """Lower end of conf-ECE's 95 % interval, 14 bins."""
    return _aggregate("conf_ece_14", "low", items)


def conf_ece_14_high(items: Sequence[Item]) -> float:
    """Upper end of conf-ECE's 95 % interval, 14 bins."""
    return _aggregate("conf_ece_14", "high", items)


def cw_ece_10(items: Sequence[Item]) -> float:
    """cw-ECE (paper Eq 20) with 10 bins."""
    return _aggregate("cw_ece_10", "estimate", items)


def cw_ece_10_low(items: Sequence[Item]) -> float:
    """Lower end of cw-ECE's 95 % interval, 10 bins."""
    return _aggregate("cw_ece_10", "low", items)


def cw_ece_10_high(items: Sequence[Item]) -> float:
    """Upper end of cw-ECE's 95 % interval, 10 bins."""
    return _aggregate("cw_ece_10", "high", items)


def cw_ece_14(items: Sequence[Item]) -> float:
    """cw-ECE with 14 bins."""
    return _aggregate("cw_ece_14", "estimate", items)


def cw_ece_14_low(items: Sequence[Item]) -> float:
    """Lower end of cw-ECE's 95 % interval, 14 bins."""
    return _aggregate("cw_ece_14", "low", items)


def cw_ece_14_high(items: Sequence[Item]) -> float:
    """Upper end of cw-ECE's 95 % interval, 14 bins."""
    return _aggregate("cw_ece_14", "high", items)
