"""Add to an evaluation what lm_eval's files leave out: floors, refinement, and ranges of what a server did not show."""

from __future__ import annotations

import logging
from pathlib import Path

from calibtune.results.measures import floor_measures, refinement_measures
from calibtune.results.ranges import range_warning, unseen_ranges
from calibtune.results.records import FILE_NAME
from calibtune.results.samples import find_samples, read_samples

logger = logging.getLogger(__name__)


def add_measures(folder: Path, results: dict[str, dict[str, float]]) -> None:
    """Add numbers of the samples files just written to those of lm_eval's results file, and warn of wide ranges.

    Args:
        folder: Of lm_eval's files.
        results: Numbers by task and metric; a task with ECEs gets those of
            :func:`calibtune.results.measures.floor_measures` and
            :func:`calibtune.results.measures.refinement_measures`, and with unseen letters those of
            :func:`calibtune.results.ranges.unseen_ranges`.
    """
    letters = {task for task, numbers in results.items() if any(name.startswith("conf_ece") for name in numbers)}
    for path in find_samples(folder) if letters else ():
        if not (match := FILE_NAME.fullmatch(path.name)) or match["task"] not in letters:
            continue  # of another kind of task, or of an earlier run
        rows = read_samples(path)
        for name, temperature in (rows.temperatures or {"none": 1.0}).items():
            end = "" if name == "none" else f",{name}"
            if f"conf_ece_10{end}" not in results[rows.task]:
                continue  # so few questions that a filter's temperature cannot be told
            ranges = unseen_ranges(rows, temperature)
            found = floor_measures(rows.log_probs, rows.labels, temperature)
            found |= refinement_measures(rows.log_probs, rows.labels, temperature) | ranges
            results[rows.task] |= {key + end: value for key, value in found.items()}
            if said := range_warning(rows, ranges):
                logger.warning("%s%s", said, f" (filter {name})" if end else "")
