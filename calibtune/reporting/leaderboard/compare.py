"""Compare the models of a task, and of the mean over tasks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibtune.errors import UserError
from calibtune.reporting.leaderboard.entries import Entry
from calibtune.reporting.numbers import mean_ends
from calibtune.results.pairs import Key, matching_rows
from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import BinGaps, confidence_gaps, letter_log_softmax, top
from harness_ext.estimators import accuracy_at_coverage
from harness_ext.floor import ece_floors
from harness_ext.intervals import ece_interval, wilson
from harness_ext.ranking import Contest, among, contest_of_eces, contest_of_means, mean_contest, pairs, rank
from harness_ext.registry import METRICS

#: What a board can be sorted by: its name on the command line, and the metric.
SORTS = {"nll": "nll", "conf_ece": "conf_ece_10", "acc": "acc"}
#: Shares of the questions, the most confident ones, on which the accuracy is shown.
COVERAGE = (50, 80)
MACRO = "macro average"


@dataclass(frozen=True)
class Standing:
    """Hold how models stand on a task or on the mean over tasks."""

    entries: list[Entry]
    #: Numbers of each entry.
    numbers: list[dict[str, float]]
    #: By the names of ``SORTS``.
    contests: dict[str, Contest]


@dataclass(frozen=True)
class _Scores:
    """Hold a model's terms on the common questions, shape (N,) each."""

    wrong: FloatArray
    nll: FloatArray
    gaps: BinGaps
    numbers: dict[str, float]


def stand(task: str, entries: Sequence[Entry]) -> Standing:
    """Compare models on a task, on the questions that all of them answered.

    Args:
        task: Its name, the seed of its resamples.
        entries: Those that have it.

    Raises:
        UserError: A model shares no question with those before it.
    """
    keys = common_keys(task, entries)
    scores = [_scores(entry, task, keys) for entry in entries]
    seed = zlib.crc32(task.encode())
    contests = {
        "nll": contest_of_means(np.stack([each.nll for each in scores], axis=1), seed=seed),
        "conf_ece": contest_of_eces([each.gaps for each in scores], seed=seed),
        "acc": contest_of_means(np.stack([each.wrong for each in scores], axis=1), seed=seed),
    }
    return Standing(list(entries), [each.numbers for each in scores], contests)


def common_keys(task: str, entries: Sequence[Entry]) -> tuple[Key, ...]:
    """Return the questions of a task that all entries answered, in the order of the first.

    Raises:
        UserError: An entry shares no question with those before it.
    """
    keys = entries[0].tasks[task].keys
    for entry in entries[1:]:
        theirs = entry.tasks[task].keys
        if theirs != keys:
            known = set(theirs)
            keys = tuple(key for key in keys if key in known)
        if not keys:
            raise UserError(
                f"{entry.run.folder} shares no question of {task} with {entries[0].run.folder}, so they cannot be "
                "ranked together; leave one out"
            )
    return keys


def _scores(entry: Entry, task: str, keys: tuple[Key, ...]) -> _Scores:
    answers = entry.tasks[task]
    rows = matching_rows(keys, answers.keys)[1]
    gold = answers.gold[rows]
    log_probs = letter_log_softmax(answers.loglikelihoods[rows], answers.temperature)
    probs = np.exp(log_probs)
    wrong = (top(probs)[1] != gold).astype(np.float64)
    loss, gaps = -log_probs[np.arange(len(gold)), gold], confidence_gaps(probs, gold)
    return _Scores(wrong, loss, gaps, _numbers(probs, gold, loss, gaps))


def _numbers(probs: FloatArray, gold: IntArray, loss: FloatArray, gaps: BinGaps) -> dict[str, float]:
    confidence, predicted = top(probs)
    right = predicted == gold
    ece, floor, nll = ece_interval(gaps), ece_floors(probs, [gaps])[0], float(loss.mean())
    ends = {
        "nll": mean_ends(loss, nll),
        "conf_ece_10": (ece.low, ece.high),
        "acc": wilson(int(right.sum()), len(gold)),
    }
    return {
        "nll": nll,
        "conf_ece_10": ece.estimate,
        "conf_ece_10_floor": floor.mean,
        "conf_ece_10_floor_95": floor.high,
        "acc": float(right.mean()),
        **{
            f"{name}_{end}": value
            for name, both in ends.items()
            for end, value in zip(("low", "high"), both, strict=True)
        },
        **{f"acc_at_{share}": accuracy_at_coverage(confidence, right, share / 100) for share in COVERAGE},
        "mean_confidence": float(confidence.mean()),
    }


def macro(standings: Mapping[str, Standing], entries: Sequence[Entry]) -> tuple[list[str], Standing] | None:
    """Average over the tasks that at least half of the models have; a model that lacks one of them is left out.

    Returns:
        The tasks and the standing, or None where there are not two tasks or no model has all.
    """
    tasks = [task for task, found in standings.items() if 2 * len(found.entries) >= len(entries)]
    chosen = [entry for entry in entries if all(task in entry.tasks for task in tasks)]
    if len(tasks) < 2 or not chosen:
        return None
    places = {task: [standings[task].entries.index(entry) for entry in chosen] for task in tasks}
    contests = {
        sort: mean_contest([among(standings[task].contests[sort], places[task]) for task in tasks]) for sort in SORTS
    }
    numbers = []
    for number in range(len(chosen)):
        each = [standings[task].numbers[places[task][number]] for task in tasks]
        shown = [name for name in each[0] if not name.endswith(("_low", "_high"))]
        means = {name: float(np.mean([found[name] for found in each])) for name in shown}
        numbers.append(means | _ends(means, contests, number))
    return tasks, Standing(chosen, numbers, contests)


def _ends(numbers: Mapping[str, float], contests: Mapping[str, Contest], number: int) -> dict[str, float]:
    """Return the ends of a model's intervals of the mean over tasks."""
    found = {}
    for sort, contest in contests.items():
        low, high = (float(end[number]) for end in contest.sums.ends(0.95))
        name = SORTS[sort]
        if METRICS[name].higher_is_better:
            low, high = 1 - high, 1 - low
        most = math.inf if name == "nll" else 1.0
        found[f"{name}_low"] = max(0.0, min(low, numbers[name]))
        found[f"{name}_high"] = min(most, max(high, numbers[name]))
    return found


def table(name: str, tasks: Sequence[str], standing: Standing) -> dict[str, Any]:
    """Return a table of the board: rows in the order of the entries, ranks, groups and pairs by what is sorted by."""
    labels = [entry.label for entry in standing.entries]
    first, second = (side.tolist() for side in pairs(len(labels)))
    ranks: list[dict[str, Any]] = [{} for _ in labels]
    found: dict[str, Any] = {"groups": {}, "pairs": {}}
    for sort, contest in standing.contests.items():
        ranking = rank(contest)
        for row, *ends in zip(ranks, ranking.rank, ranking.low, ranking.high, strict=True):
            row[sort] = dict(zip(("rank", "low", "high"), map(int, ends), strict=True))
        found["groups"][sort] = [[labels[model] for model in group] for group in ranking.groups]
        sign = -1 if METRICS[SORTS[sort]].higher_is_better else 1
        found["pairs"][sort] = [
            {
                "a": labels[a],
                "b": labels[b],
                "difference": sign * float(contest.scores[b] - contest.scores[a]),
                "p": float(p),
                "p_holm": float(adjusted),
                "better": labels[a] if ranking.better[a, b] else labels[b] if ranking.better[b, a] else None,
            }
            for a, b, p, adjusted in zip(first, second, ranking.p, ranking.adjusted, strict=True)
        ]
    rows = [
        {"label": label, "numbers": numbers, "ranks": each}
        for label, numbers, each in zip(labels, standing.numbers, ranks, strict=True)
    ]
    questions = standing.contests["acc"].questions
    return {"name": name, "tasks": list(tasks), "questions": questions, "rows": rows, **found}
