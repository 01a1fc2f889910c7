"""Collect win rates of the task ``ultrafeedback_winrate`` and of ``calibtune winrate``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from calibtune.reading import Count, Record, Share, checked, read_json_lines
from calibtune.reporting.numbers import clear
from calibtune.reporting.runs import WIN_TASK, Run
from harness_ext.intervals import paired_difference, wilson

#: Title of each metric of the harness in the table.
METRICS = {"win_rate": "UltraFeedback, summed log-probability", "win_rate_avg": "UltraFeedback, mean per token"}


class Shares(TypedDict):
    """Describe the win rate of a task in a results file."""

    win_rate: Share
    low: Share | None
    high: Share | None
    ties: Share | None
    cut: Share | None


class Won(Record):
    """Hold a line of the task's samples, as far as it is read."""

    doc_id: Count
    doc_hash: str
    win_rate: Share
    win_rate_avg: Share
    ties: Share = 0.0
    cut: Share = 0.0


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
            found = (
                _of_shards(run.files[WIN_TASK])
                if run.whole and WIN_TASK in run.files
                else run.results.get(WIN_TASK, {})
            )
            key = next((key for key in found if key.split(",")[0] == metric), None)
            if key is None:
                continue
            named = {"low": f"{metric}_low", "high": f"{metric}_high", "ties": "ties", "cut": "cut"}
            numbers = {short: found.get(key.replace(metric, long)) for short, long in named.items()}
            where = f"{run.label}, {WIN_TASK}"
            shares = checked({"win_rate": found[key], **numbers}, Shares, where, "run the evaluation again")
            note = _shown(ties=shares.pop("ties"), cut=shares.pop("cut"))
            about = {"label": run.label, "benchmark": name, "baseline": "the rejected response", "note": note}
            # Numbers of results files are read as floats.
            pairs = found.get("sample_len")
            count = int(pairs) if isinstance(pairs, float) and pairs.is_integer() else pairs
            rows.append({**about, **shares, "n": count, **_difference(run, base, metric)})
    for run in runs:
        for record in run.win_records:
            row = {key: record.get(key) for key in ("benchmark", "baseline", "win_rate", "low", "high", "n", "note")}
            rows.append({**row, "label": run.label, "model": record.get("model"), "file": record.get("file")})
    return rows


def _shown(**shares: float | None) -> str:
    return "; ".join(f"{name} {value:.2%}" for name, value in shares.items() if value)


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


def _wins(paths: Iterable[Path], metric: str) -> dict[tuple[str, int], float]:
    wins: dict[tuple[str, int], float] = {}
    # The data can contain the same pair twice.
    copies: Counter[str] = Counter()
    for row in _rows(paths):
        wins[row.doc_hash, copies[row.doc_hash]] = getattr(row, metric)
        copies[row.doc_hash] += 1
    return wins


def _rows(paths: Iterable[Path]) -> list[Won]:
    """Return the task's pairs in the order of the whole run."""
    rows = (row for path in paths for _, row in read_json_lines(path, Won, "run the evaluation again"))
    return sorted(rows, key=lambda row: row.doc_id)


def _of_shards(paths: Iterable[Path]) -> Mapping[str, float]:
    """Return the task's numbers on the pairs of all shards, as a whole run's results file has them."""
    rows = _rows(paths)
    sums = {name: math.fsum(getattr(row, name) for row in rows) for name in (*METRICS, "ties", "cut")}
    numbers = {f"{name},none": total / len(rows) for name, total in sums.items()}
    for name in METRICS:
        numbers |= dict(zip((f"{name}_low,none", f"{name}_high,none"), wilson(sums[name], len(rows)), strict=True))
    return {**numbers, "sample_len": len(rows)}
