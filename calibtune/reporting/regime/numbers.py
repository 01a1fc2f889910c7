"""Compute what the regime page shows: how probabilities spread, the theory of section 4, frontier and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import top
from harness_ext.world.theory import measure_theory

#: Bins of the histogram of option probabilities.
SPREAD = 20
#: A model is sure of an option from this probability on.
SURE = 0.99
#: Verdicts on a model: on known p*, then on real data.
BELOW, ABOVE, AT = "calibratable", "not calibratable", "calibratable, at acc*"
SHOWN, UNKNOWN = "calibratable", "cannot be known"


def spread(probs: FloatArray) -> dict[str, Any]:
    """Return how a model's probabilities spread over the options, which preference collapse narrows to one.

    Args:
        probs: Shape (N, K), NaN where the letter is absent.

    Returns:
        ``shares``: histogram of the probabilities of all options in ``SPREAD`` bins, as shares; ``top``: mean of the
        largest; ``sure``: share of questions in which it is at least ``SURE``; ``entropy``: mean over the questions,
        in bits.
    """
    given, largest = probs[~np.isnan(probs)], top(probs)[0]
    bits = -np.nansum(np.where(probs > 0, probs * np.log2(np.where(probs > 0, probs, 1)), 0.0), axis=1)
    return {
        "shares": (np.histogram(given, SPREAD, (0, 1))[0] / len(given)).tolist(),
        "top": float(largest.mean()),
        "sure": float((largest >= SURE).mean()),
        "entropy": float(np.abs(bits).mean()),
    }


def theory(probs: FloatArray, p_star: FloatArray, gold: IntArray) -> dict[str, Any]:
    """Return :class:`harness_ext.world.theory.Theory` as a dictionary, with both bounds and the spread of p*."""
    found = measure_theory(probs, p_star, gold)
    return {
        **found._asdict(),
        **{name: getattr(found, name)._asdict() for name in ("tce", "above")},
        "lower": found.lower,
        "upper": found.upper,
        "letters": int((~np.isnan(probs)).sum(axis=1).max()),
        "spread": spread(p_star),
    }


def p_star_known(entries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether the questions of all models come with their true probabilities."""
    return all("theory" in entry for entry in entries.values())


def frontier(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the labels of the models that no other one beats in accuracy and conf-ECE, the least accurate first.

    Example:
        >>> entry = lambda acc, ece: {"numbers": {"acc": acc, "conf_ece_10": ece}}
        >>> frontier({"a": entry(0.7, 0.3), "b": entry(0.7, 0.1), "c": entry(0.6, 0.2), "d": entry(0.5, 0.05)})
        ['d', 'b']
    """
    points = {label: (entry["numbers"]["acc"], entry["numbers"]["conf_ece_10"]) for label, entry in entries.items()}
    best: list[str] = []
    # From the most accurate down: each further one must have less error than all before.
    for label in sorted(points, key=lambda label: (-points[label][0], points[label][1])):
        if not best or points[label][1] < points[best[-1]][1]:
            best.append(label)
    return best[::-1]


def most_accurate_calibrated(entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the most accurate model with no more conf-ECE than 95 % of calibrated draws; None if there is none.

    Its accuracy is at most acc*, as far as the questions tell: acc* is the largest accuracy of a calibrated model.
    """
    labels = [
        label
        for label, entry in entries.items()
        if entry["numbers"]["conf_ece_10"] <= entry["numbers"]["conf_ece_10_floor_95"]
    ]

    def rank(label: str) -> tuple[float, float]:
        return entries[label]["numbers"]["acc"], -entries[label]["numbers"]["conf_ece_10"]

    return max(labels, key=rank, default=None)


def verdicts(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return each model's regime: ``BELOW``, ``ABOVE`` or ``AT`` where p* is known, else ``SHOWN`` or ``UNKNOWN``.

    With p* the drawn accuracy is compared with that of p* on the same answers, paired; without, with the accuracy of
    the most accurate model that is calibrated as far as the questions tell.
    """
    calibrated = most_accurate_calibrated(entries)
    found = {}
    for label, entry in entries.items():
        if "theory" in entry:
            above = entry["theory"]["above"]
            found[label] = ABOVE if above["low"] > 0 else BELOW if above["high"] < 0 else AT
        else:
            least = entries[calibrated]["numbers"]["acc"] if calibrated else -1.0
            found[label] = SHOWN if entry["numbers"]["acc"] <= least else UNKNOWN
    return found
