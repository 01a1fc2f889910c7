"""Compute the numbers of each method and task, and the differences between methods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibtune.parallel import Map
from calibtune.reporting.paired import Scored, paired_differences, scored
from calibtune.reporting.questions import Questions, match
from calibtune.reporting.regime.numbers import spread, theory
from calibtune.reporting.runs import Run
from calibtune.results.measures import further_measures, harness_measures
from harness_ext.binning import BinTable, FloatArray, IntArray, bin_table
from harness_ext.calibration import letter_log_softmax, top
from harness_ext.estimators import accuracy_at_coverage
from harness_ext.intervals import Interval, Z, wilson
from harness_ext.prompts import LETTERS
from harness_ext.registry import MEANS

BINS = 10
#: Methods in figures.
MOST_DRAWN = 12
#: Coverages of the accuracy-at-coverage curve.
COVERAGE = tuple(step / 20 for step in range(1, 21))
#: Temperatures that differ by less than this count as equal.
SAME_T = 1e-6
#: Smaller differences can be rounding errors.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Method:
    """Describe a row of the report's tables: a run at the temperature of a filter or a fit."""

    label: str
    run: Run
    #: Filter of the samples that gives the temperature; None with ``fixed``.
    filter: str | None = None
    #: Temperature from ``temperature.json``.
    fixed: float | None = None

    def temperature(self, questions: Questions) -> float:
        """Return T on these questions; 1 if their samples have no temperature."""
        if self.fixed is not None:
            return self.fixed
        value = questions.temperatures.get(self.filter or "", 1.0)
        return 1.0 if abs(value - 1) < SAME_T else value


def methods_of(run: Run, tasks: Mapping[str, Questions]) -> list[Method]:
    """Return the methods of a run: one for each distinct temperature of a filter or a fit.

    Args:
        run: The run, with its label.
        tasks: Its questions by task.

    Returns:
        The unscaled method first, with the run's label; then "label + temperature T = 4.3", without
        the number if it is another for each task.
    """
    filters: dict[str, tuple[float, ...]] = {}
    for name in dict.fromkeys(name for questions in tasks.values() for name in questions.temperatures):
        values = tuple(questions.temperatures.get(name, 1.0) for questions in tasks.values())
        if not any(np.allclose(values, other, atol=SAME_T) for other in filters.values()):
            filters[name] = values
    order = sorted(filters, key=lambda name: not np.allclose(filters[name], 1, atol=SAME_T))
    if len(order) < 2:
        methods = [Method(run.label, run, order[0] if order else None)]
    else:
        methods = [Method(run.label, run, order[0])]
        for name in order[1:]:
            own = {questions.temperatures[name] for questions in tasks.values() if name in questions.temperatures}
            methods.append(Method(_scaled_label(methods, own, name), run, name))
    fitted = run.fitted_temperature()
    if fitted and not any(np.allclose(values, fitted[0], rtol=1e-4) for values in filters.values()):
        methods.append(Method(_scaled_label(methods, {fitted[0]}, "fitted"), run, fixed=fitted[0]))
    return methods


def _scaled_label(methods: Sequence[Method], values: set[float], source: str) -> str:
    texts = {f"{value:.3g}" for value in values}
    label = f"{methods[0].label} + temperature" + (f" T = {texts.pop()}" if len(texts) == 1 else "")
    return f"{label} ({source})" if any(method.label == label for method in methods) else label


def scaled_label(methods: Iterable[str], label: str) -> str:
    """Return the label of a run at its temperature, or the run's own if it has none.

    Example:
        >>> scaled_label(["base", "base + temperature T = 4.3"], "base")
        'base + temperature T = 4.3'
    """
    return next((name for name in methods if name.startswith(f"{label} + temperature")), label)


def measure(questions: Questions, temperature: float, figures: bool) -> dict[str, Any]:
    """Compute the results of a method on a task.

    Args:
        questions: The questions with the model's log-likelihoods.
        temperature: T > 0.
        figures: Whether to add ``bins``, ``classes``, ``options``, ``spread`` and ``coverage`` for the figures.

    Returns:
        ``questions`` (N), ``temperature`` and ``numbers`` (the metrics of ``rescore``, with
        ``_low`` and ``_high``); if T is not 1, also ``unscaled``, the metrics at T = 1; where p* is
        known, also ``theory``.
    """
    numbers = _numbers(questions, temperature)
    entry: dict[str, Any] = {"questions": len(questions.gold), "temperature": temperature, "numbers": numbers}
    if temperature != 1:
        entry["unscaled"] = _numbers(questions, 1.0)
    probs = np.exp(letter_log_softmax(questions.loglikelihoods, temperature))
    if questions.p_star is not None:
        entry["theory"] = theory(probs, questions.p_star, questions.gold)
    if figures:
        confidence, predicted = top(probs)
        correct = predicted == questions.gold
        entry["bins"] = _bins(bin_table(confidence, correct, BINS))
        entry["classes"] = _classes(probs, questions.gold)
        entry["options"] = _options(probs, predicted, questions.gold)
        entry["spread"] = spread(probs)
        entry["coverage"] = {
            "share": list(COVERAGE),
            "accuracy": [accuracy_at_coverage(confidence, correct, share) for share in COVERAGE],
        }
    return entry


def _numbers(questions: Questions, temperature: float) -> dict[str, float]:
    numbers = harness_measures(questions.loglikelihoods, questions.gold, temperature)
    numbers |= further_measures(questions.loglikelihoods, questions.gold, temperature)
    rows, means = len(questions.gold), scored(questions, temperature).means
    numbers["acc_low"], numbers["acc_high"] = wilson(round(means[:, 0].sum()), rows)
    for name, column in zip(MEANS[1:], means.T[1:], strict=True):
        most = {"letter_mass": 1.0, "brier": 2.0}.get(name, math.inf)
        numbers[f"{name}_low"], numbers[f"{name}_high"] = mean_ends(column, numbers[name], most)
    return numbers


def mean_ends(column: FloatArray, mean: float, most: float = math.inf) -> tuple[float, float]:
    """Return the ends of the normal 95 % interval of a mean of values that are not below 0.

    Args:
        column: Shape (N,).
        mean: Their mean; the interval holds it even where it is above ``most``, as a letter mass of a half-precision
            backend can be.
        most: Largest end.
    """
    half = Z * column.std(ddof=1) / math.sqrt(len(column)) if len(column) > 1 else math.inf
    return max(0.0, mean - half), max(mean, min(most, mean + half))


def _bins(table: BinTable) -> dict[str, list[float]]:
    ends = [
        wilson(round(accuracy * count), count) if count else (math.nan, math.nan)
        for count, accuracy in zip(table.count.tolist(), table.accuracy.tolist(), strict=True)
    ]
    return {
        "count": table.count.tolist(),
        "accuracy": table.accuracy.tolist(),
        "confidence": table.confidence.tolist(),
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
    }


def _classes(probs: FloatArray, gold: IntArray) -> dict[str, dict[str, list[float]]]:
    """Return the bins of each letter's probability, with how often the letter is right in each."""
    classes = {}
    for letter in range(probs.shape[1]):
        has = ~np.isnan(probs[:, letter])
        classes[letter_name(letter)] = _bins(bin_table(probs[has, letter], gold[has] == letter, BINS))
    return classes


def drawn(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a task's methods that figures show, the base first; no figure of more can be read."""
    return dict(itertools.islice(task["methods"].items(), MOST_DRAWN))


def letter_name(index: int) -> str:
    """Return the letter of an option, or its number from 27 on."""
    return LETTERS[index] if index < len(LETTERS) else str(index + 1)


def _options(probs: FloatArray, predicted: IntArray, gold: IntArray) -> dict[str, Any]:
    letters, rows = probs.shape[1], len(gold)
    chosen, right = (np.bincount(values, minlength=letters) for values in (predicted, gold))
    return {
        "letters": [letter_name(letter) for letter in range(letters)],
        "offered": (~np.isnan(probs)).sum(axis=0).tolist(),
        "chosen": (chosen / rows).tolist(),
        "chosen_low": [wilson(hits, rows)[0] for hits in chosen.tolist()],
        "chosen_high": [wilson(hits, rows)[1] for hits in chosen.tolist()],
        "right": (right / rows).tolist(),
        "entropy_chosen": entropy(chosen / rows),
        "entropy_right": entropy(right / rows),
        "entropy_most": math.log2(letters),
    }


def entropy(shares: FloatArray) -> float:
    """Compute the entropy in bits of shares that sum to 1, in [0, log2 K].

    It is 0 if one letter is always chosen, and log2 K if all are chosen equally often.
    """
    used = shares[shares > 0]
    return float(abs((used * np.log2(used)).sum()))


def compare(
    methods: Sequence[tuple[Method, Mapping[str, Questions]]],
    base: Method,
    step: Callable[[str], None],
    mapped: Map = map,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute the paired differences between each method and the base.

    Args:
        methods: Each method with its run's questions, including the base.
        base: The method to compare with.
        step: Called with a text after each task of each method.
        mapped: ``map``, or one over several processes.

    Returns:
        ``{task: {label: {"questions": n, metric: {estimate, low, high, clear}}}}``, where n is the
        number of shared questions and ``clear`` says that the interval excludes 0. Without shared
        questions it is ``{"questions": 0}``.
    """
    base_tasks = next(tasks for method, tasks in methods if method is base)
    output: dict[str, dict[str, dict[str, Any]]] = {}
    ready: dict[str, tuple[Questions, float, Scored]] = {}
    for task, questions in base_tasks.items():
        temperature = base.temperature(questions)
        ready[task] = questions, temperature, scored(questions, temperature)
    pairs = [
        (task, method.label, (questions, method.temperature(questions), *ready[task]))
        for method, tasks in methods
        for task, questions in tasks.items()
        if method is not base and task in ready
    ]
    found = mapped(_difference, [sides for *_, sides in pairs])
    for (task, label, _), difference in zip(pairs, found, strict=True):
        output.setdefault(task, {})[label] = difference
        step(f"compare {label} on {task}")
    return output


def _difference(sides: tuple[Questions, float, Questions, float, Scored]) -> dict[str, Any]:
    questions, temperature, base_questions, base_temperature, base_scored = sides
    if questions.keys == base_questions.keys:
        both = base_scored, scored(questions, temperature)
        count = len(questions.keys)
    else:
        mine, theirs = match(questions, base_questions)
        count = len(mine.keys)
        if not count:
            return {"questions": 0}
        # Use the temperature of the whole task, which does not depend on the shared questions.
        both = scored(theirs, base_temperature), scored(mine, temperature)
    return {"questions": count, **{name: clear(item) for name, item in paired_differences(*both).items()}}


def clear(item: Interval) -> dict[str, Any]:
    """Return ``estimate``, ``low``, ``high`` and ``clear``, whether the interval excludes 0.

    An interval that excludes 0 only by a rounding error does not count as clear.
    """
    return {**item._asdict(), "clear": bool(item.low > ROUNDING or item.high < -ROUNDING)}
