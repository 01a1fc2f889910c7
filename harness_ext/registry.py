"""List the metrics of a letter task once: the task YAMLs, the harness's table, rescore and the report follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from harness_ext.calibration import BinGaps, classwise_gaps, confidence_gaps


class Metric(NamedTuple):
    """Describe a metric to readers."""

    #: Head of its column.
    title: str
    higher_is_better: bool


#: The cells of each ECE, by name.
ECES: dict[str, Callable[..., BinGaps]] = {"conf_ece": confidence_gaps, "cw_ece": classwise_gaps}
#: Numbers of bins: the paper's, and its check.
BINS = (10, 14)
#: By name, in the order of every table. An ECE has ``_low`` and ``_high`` beside it, the ends of its 95 % interval.
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
