"""Collect win rates of the task ``ultrafeedback_winrate`` and of ``calibtune winrate``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibtune.errors import UserError
from calibtune.reporting.numbers import clear
from calibtune.reporting.runs import WIN_TASK, Run
from harness_ext.intervals import paired_difference

#: Title of each metric of the harness in the table.
METRICS = {"win_rate": "UltraFeedback, summed log-probability", "win_rate_avg": "UltraFeedback, mean per token"}


def win_rates(runs: Sequence[Run], base: Run) -> list[dict[str, Any]]:
    """Return all win rates of the runs.

    Args:
        runs: The runs, with their labels.
        base: The run with which UltraFeedback's win rates are compared, pair by pair.

    Returns:
        Rows with ``label``, ``benchmark``, ``baseline``, ``win_rate``, ``low``, ``high`` (shares in
        [0, 1]), ``n``, ``note`` and, for UltraFeedback, ``difference`` to the base.

    Raises:
        UserError: A win rate is not in [0, 1], or a samples file is damaged.
    """
    rows = []
    for metric, name in METRICS.items():
        for run in runs:
            found = run.results.get(WIN_TASK, {})
            key = next((key for key in found if key.split(",")[0] == metric), None)
            if key is None:
                continue
            ties, cut = (found.get(key.replace(metric, other)) for other in ("ties", "cut"))
            rows.append(
                {
                    "label": run.label,
                    "benchmark": name,
                    "baseline": "the rejected response",
                    "win_rate": found[key],
                    "low": found.get(key.replace(metric, f"{metric}_low")),
                    "high": found.get(key.replace(metric, f"{metric}_high")),
                    "n": found.get("sample_len"),
                    "note": "; ".join(_share(text, value) for text, value in (("ties", ties), ("cut", cut)) if value),
                    **_difference(run, base, metric),
                }
            )
    for run in runs:
        for record in run.win_records:
            row = {key: record.get(key) for key in ("benchmark", "baseline", "win_rate", "low", "high", "n", "note")}
            rows.append({**row, "label": run.label, "model": record.get("model"), "file": record.get("file")})
    for row in rows:
        _check(row)
    return rows


def _share(text: str, value: float) -> str:
    return f"{text} {value:.2%}"


def _check(row: dict[str, Any]) -> None:
    value = row["win_rate"]
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or not 0 <= value <= 1:
        raise UserError(
            f"{row.get('file', row['label'])}: win_rate is {value!r}, not a share from 0 to 1; write it again with "
            "`python -m calibtune winrate`"
        )


def _difference(run: Run, base: Run, metric: str) -> dict[str, Any]:
    if run is base or WIN_TASK not in run.files or WIN_TASK not in base.files:
        return {}
    mine, theirs = (_wins(each.files[WIN_TASK], metric) for each in (run, base))
    shared = [key for key in theirs if key in mine]
    if not shared:
        return {}
    base_wins, own_wins = (np.array([wins[key] for key in shared]) for wins in (theirs, mine))
    interval = paired_difference(lambda wins: float(wins.mean()), (base_wins,), (own_wins,))
    return {"difference": {**clear(interval), "questions": len(shared)}}


def _wins(path: Path, metric: str) -> dict[tuple[str, int], float]:
    wins: dict[tuple[str, int], float] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            try:
                sample = json.loads(line)
                digest, win = str(sample["doc_hash"]), float(sample[metric])
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number} is not a complete sample with {metric}; run the evaluation again"
                ) from None
            # The data can contain the same pair twice.
            copy = 0
            while (digest, copy) in wins:
                copy += 1
            wins[digest, copy] = win
    return wins
