"""Format metrics and their intervals as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: What a metric has besides its value, in columns of its own.
_MORE = ("low", "high", "least", "most", "floor", "floor_95", "excess", "p", "debiased")
#: Columns of an ECE with a floor, behind its name.
_HEAD = f"  {'value':>6}  {'95% interval':16}  {'floor':>6}  {'to 95%':>6}  {'excess':>7}  {'debiased':>8}  calibrated?"
#: A p-value below this says that a model is not calibrated.
LEVEL = 0.05


def numbers_table(title: str, numbers: Mapping[str, float]) -> str:
    """Return a text with one line per metric, followed by its interval if there is one; ECEs with a floor come last.

    Args:
        title: The first line.
        numbers: Value of each metric; ``X_low`` and ``X_high`` are the ends of X's interval, ``X_least`` and ``X_most``
            those of its range where letters are unseen; ``X_floor``, ``X_floor_95``, ``X_excess``, ``X_p`` and
            ``X_debiased`` are as in :func:`calibtune.results.measures.floor_measures`.

    Example:
        >>> print(numbers_table("t: 64 questions", {"acc": 0.5, "ece": 0.1, "ece_low": 0.05, "ece_high": 0.2}))
        t: 64 questions
          acc    0.5000
          ece    0.1000  [0.0500, 0.2000]
    """
    metrics = {name: _of(numbers, name) for name in numbers if not _belongs(numbers, name)}
    lone = {name: found for name, found in metrics.items() if "floor" not in found}
    eces = {name: found for name, found in metrics.items() if "floor" in found}
    width = max(map(len, lone), default=0)
    lines = [title, *(f"  {name:<{width}}  {numbers[name]:8.4f}{_ends(found)}" for name, found in lone.items())]
    if eces:
        width = max(map(len, eces))
        lines.append(f"  {'':<{width}}{_HEAD}")
    for name, found in eces.items():
        interval = f"[{found['low']:.4f}, {found['high']:.4f}]"
        lines.append(
            f"  {name:<{width}}  {numbers[name]:.4f}  {interval}  {found['floor']:.4f}  {found['floor_95']:.4f}  "
            f"{found['excess']:+.4f}  {found['debiased']:8.4f}  {calibrated(found['p'])}"
        )
        if unseen := _unseen(found):
            lines.append(f"  {'':<{width}}{unseen}")
    return "\n".join(lines)


def for_json(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers with None for NaN, such as AUROC if all answers are right, and for infinity, which JSON lacks."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in numbers.items()}


def calibrated(p: float) -> str:
    """Say what a p-value of "calibrated" tells.

    Example:
        >>> calibrated(0.0004), calibrated(0.02), calibrated(0.4321), calibrated(1.0)
        ('no, p < .001', 'no, p = .020', 'maybe, p = .432', 'maybe, p = 1.000')
    """
    answer = "no" if p < LEVEL else "maybe"
    return f"{answer}, p < .001" if p < 0.001 else f"{answer}, p = {p:.3f}".replace("= 0.", "= .")


def _belongs(numbers: Mapping[str, float], name: str) -> bool:
    """Return whether a number is one of another metric's columns."""
    metric, comma, pipeline = name.partition(",")
    return any(
        metric.endswith(f"_{more}") and f"{metric.removesuffix(f'_{more}')}{comma}{pipeline}" in numbers
        for more in _MORE
    )


def _of(numbers: Mapping[str, float], name: str) -> dict[str, float]:
    metric, comma, pipeline = name.partition(",")
    found = {more: numbers.get(f"{metric}_{more}{comma}{pipeline}") for more in _MORE}
    return {more: value for more, value in found.items() if value is not None}


def _ends(found: Mapping[str, float]) -> str:
    interval = f"  [{found['low']:.4f}, {found['high']:.4f}]" if {"low", "high"} <= found.keys() else ""
    return interval + _unseen(found)


def _unseen(found: Mapping[str, float]) -> str:
    return f"  {found['least']:.4f} to {found['most']:.4f} by unseen letters" if "least" in found else ""
