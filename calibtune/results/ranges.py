"""Bound the metrics of a samples file in which a server did not show all letters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibtune.results.samples import Samples
from harness_ext.binning import Edge
from harness_ext.ranges import metric_ranges
from harness_ext.registry import BINS

#: What the ends of a metric's range are called behind its name.
ENDS = ("least", "most")
#: A range that is wider than this is warned of: one in the second decimal of an ECE or an accuracy.
MATTERS = 0.01


def unseen_ranges(
    rows: Samples, temperature: float = 1.0, bins: tuple[int, ...] = BINS, edge: Edge = "left"
) -> dict[str, float]:
    """Bound the metrics over all probabilities that letters can have which a server did not show.

    Args:
        rows: Questions of a samples file.
        temperature: Divides the log-likelihoods.
        bins: Numbers of equal-width bins of the ECEs.
        edge: Whether bins are closed on the left or the right.

    Returns:
        Both ends of each range as ``X_least`` and ``X_most``, see :func:`harness_ext.ranges.metric_ranges`; empty where
        all letters were shown.
    """
    if not rows.unseen.any():
        return {}
    found = metric_ranges(rows.log_probs, rows.unseen, rows.labels, temperature, bins, edge)
    return {f"{name}_{end}": value for name, ends in found.items() for end, value in zip(ENDS, ends, strict=True)}


def range_warning(rows: Samples, ranges: Mapping[str, float]) -> str | None:
    """Say where unseen letters leave a metric's value open by more than ``MATTERS``; None where they do not.

    Args:
        rows: Questions of a samples file.
        ranges: See :func:`unseen_ranges`.
    """
    width = {n.removesuffix("_most"): most - ranges[n[:-4] + "least"] for n, most in ranges.items() if "_most" in n}
    wide = [name for name, size in width.items() if size > MATTERS and name not in ("brier", "letter_mass")]
    if not wide:
        return None
    cut = int(rows.unseen.any(axis=1).sum())
    gold = int(rows.unseen[np.arange(len(rows.labels)), rows.labels].sum())
    shown = ", ".join(f"{name} {ranges[f'{name}_least']:.4f} to {ranges[f'{name}_most']:.4f}" for name in wide)
    lies = f", the right one in {gold}" if gold else ""
    return (
        f"{rows.task}: in {cut} of {len(rows.labels)} questions a letter lies beyond the server's top tokens{lies}, "
        f"which leaves open {shown}; ask a server that shows more tokens (top_logprobs)"
    )
