"""List the metrics of a letter task, for the task YAMLs, the harness's table, rescore and report."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from harness_ext.calibration import BinGaps, classwise_gaps, confidence_gaps


class Metric(NamedTuple):
    """Describe a metric for tables and charts."""

    #: Title of its column.
    title: str
    higher_is_better: bool


#: Function that computes the terms of each ECE.
ECES: dict[str, Callable[..., BinGaps]] = {"conf_ece": confidence_gaps, "cw_ece": classwise_gaps}
#: Numbers of bins: 10, and 14 as a check (arXiv 2505.01997).
BINS = (10, 14)
#: All metrics in the order of every table. For an ECE the harness also has ``_low`` and ``_high``,
#: the ends of its 95 % interval.
METRICS: dict[str, Metric] = {
    "acc": Metric("accuracy", True),
    "conf_ece_10": Metric("conf-ECE, 10 bins", False),
    "conf_ece_14": Metric("conf-ECE, 14 bins", False),
    "cw_ece_10": Metric("cw-ECE, 10 bins", False),
    "cw_ece_14": Metric("cw-ECE, 14 bins", False),
    "nll": Metric("NLL (nats)", False),
    "brier": Metric("Brier", False),
    "letter_mass": Metric("letter mass", True),
}
#: The metrics that are means over the questions.
MEANS = tuple(name for name in METRICS if "_ece_" not in name)
