"""Temperature scaling: one T on the letters' log-likelihoods (Guo et al. 2017; paper section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import chdtri, ndtri

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import conf_ece, letter_log_softmax, nll, top
from harness_ext.errors import UserError
from harness_ext.inputs import checked_log_probs
from harness_ext.ranges import BoolArray, conf_ece_range, nll_range
from harness_ext.refinement import LEAST, MOST, best_temperature, held_out_temperatures
from harness_ext.sanity import count_ties

Objective = Literal["nll", "ece"]
#: Bounds of log T.
LOW, HIGH = float(np.log(LEAST)), float(np.log(MOST))
#: Resamples for the interval of the T that minimizes ECE, and the grid that its steps are searched on.
RESAMPLES, GRID = 200, 121
#: The 95 % quantile of chi-squared with one degree of freedom, without scipy.stats, which takes long to import.
CHI2_95 = float(chdtri(1, 0.05))


@dataclass(frozen=True)
class Temperature:
    """Hold a fitted temperature.

    Example:
        >>> t = Temperature(2.0, (1.5, 2.5), "nll", 100, ())
        >>> np.exp(t.apply([[2.0 * np.log(3.0), 0.0]])).round(6).tolist()
        [[0.75, 0.25]]
    """

    #: T.
    value: float
    #: Both ends of its 95 % interval.
    interval: tuple[float, float]
    objective: Objective
    #: Questions fitted on.
    questions: int
    #: What a user should know: letters without signal or against the right answer, answers that are all right.
    warnings: tuple[str, ...]

    def apply(self, log_probs: ArrayLike) -> FloatArray:
        """Divide log-probabilities by T and normalize them over each question's letters.

        Args:
            log_probs: Log-probabilities of the letters, shape (N, K), NaN where a question has fewer letters.

        Returns:
            Log-probabilities over the letters, shape (N, K), NaN kept; their exponentials sum to 1.

        Raises:
            UserError: See :func:`harness_ext.inputs.checked_log_probs`.
        """
        return letter_log_softmax(checked_log_probs(log_probs)[0], self.value)

    def record(self) -> dict[str, Any]:
        """Return what ``temperature.json`` and the manifest hold."""
        low, high = self.interval
        return {
            "temperature": self.value,
            "low": low,
            "high": high,
            "objective": self.objective,
            "questions": self.questions,
            "warnings": list(self.warnings),
        }


def fit_temperature(
    log_probs: ArrayLike, labels: ArrayLike, objective: Objective = "nll", bins: int = 10, seed: int = 0
) -> Temperature:
    """Find the T that minimizes the NLL (a maximum-likelihood estimate) or conf-ECE (as the paper searches it).

    Args:
        log_probs: Log-probabilities of the letters, shape (N, K), NaN where a question has fewer letters. They need
            not be normalized over the letters.
        labels: Index of the right letter, shape (N,).
        objective: What T minimizes.
        bins: M of conf-ECE.
        seed: Of the resamples for the ECE objective's interval.

    Returns:
        T in [0.01, 100] with an interval: of the profile likelihood for "nll", bootstrap percentiles for "ece".

    Raises:
        UserError: See :func:`harness_ext.inputs.checked_log_probs`; or another objective.

    Example:
        >>> log_probs = np.log([[0.9, 0.1]] * 10)
        >>> fit_temperature(log_probs, [0] * 7 + [1] * 3).apply(log_probs)[0].round(3).tolist()
        [-0.357, -1.204]
    """
    if objective not in ("nll", "ece"):
        raise UserError(f"objective is {objective!r}; give 'nll' or 'ece'")
    values, answers = checked_log_probs(log_probs, labels)
    if objective == "nll":
        best, low, high = _by_nll(values, answers)
    else:
        best, low, high = _by_ece(values, answers, bins, np.random.default_rng(seed))
    remarks = tuple(_remarks(best, values, answers))
    return Temperature(_exp(best), (_exp(low), _exp(high)), objective, len(answers), remarks)


def check_unseen(
    fitted: Temperature, log_probs: FloatArray, unseen: BoolArray, labels: IntArray, bins: int
) -> Temperature:
    """Check that letters which a server did not show leave T open by less than the number of questions does.

    Args:
        fitted: T, with unseen letters at the largest probabilities that they can have.
        log_probs: What it was fitted on, shape (N, K).
        unseen: Which letters are unseen, shape (N, K).
        labels: Index of the right letter, shape (N,).
        bins: M of conf-ECE.

    Returns:
        The same with a remark.

    Raises:
        UserError: T can lie outside its interval.
    """
    low, high = unseen_interval(fitted, log_probs, unseen, labels, bins)
    rows, right = int(unseen.any(axis=1).sum()), int(unseen[np.arange(len(labels)), labels].sum())
    said = (
        f"in {rows} of {len(labels)} questions a letter lies beyond the server's top tokens, in {right} the right one"
    )
    between = f"T between {low:.4g} and {high:.4g}"
    if low < fitted.interval[0] or high > fitted.interval[1]:
        other = ", or give --objective ece" if right and fitted.objective == "nll" else ""
        raise UserError(
            f"{said}, which leaves {between}, more than its 95 % interval [{fitted.interval[0]:.4g}, "
            f"{fitted.interval[1]:.4g}]; ask a server that shows more tokens{other}"
        )
    return replace(fitted, warnings=(*fitted.warnings, f"{said}, which leaves {between}"))


def unseen_interval(
    fitted: Temperature, log_probs: FloatArray, unseen: BoolArray, labels: IntArray, bins: int
) -> tuple[float, float]:
    """Enclose the T's that are best for any probabilities which unseen letters can have.

    With such probabilities the loss of each T lies between two bounds, so that the best T's lower bound is at most the
    least upper bound. For the NLL that one is at the fitted T, and the lower bound is convex in 1/T, so that the ends
    are found to either side; for conf-ECE they are looked for on a grid. Arguments as for :func:`check_unseen`.
    """
    best = float(np.log(fitted.value))
    if fitted.objective == "nll":

        def bounds(log_t: float) -> tuple[float, float]:
            return nll_range(log_probs, unseen, labels, float(np.exp(log_t)))

        low, high = _ends(lambda log_t: bounds(log_t)[0], bounds(best)[1], best)
    else:
        grid = np.array([*np.linspace(LOW, HIGH, GRID), best])
        least, most = np.array([conf_ece_range(log_probs, unseen, labels, t, bins) for t in np.exp(grid)]).T
        inside = grid[least <= most.min()]
        low, high = float(inside.min()), float(inside.max())
    return _exp(low), _exp(high)


def cross_fitted(
    log_probs: ArrayLike, labels: ArrayLike, objective: Objective = "nll", bins: int = 10, seed: int = 0
) -> FloatArray:
    """Scale each question by a T that was fitted on other questions.

    See :func:`harness_ext.refinement.held_out_temperatures`.

    Args:
        log_probs: Log-probabilities of the letters, shape (N, K), NaN where a question has fewer letters.
        labels: Index of the right letter, shape (N,).
        objective: What T minimizes.
        bins: M of conf-ECE.
        seed: Of the split.

    Returns:
        Log-probabilities over the letters, shape (N, K). Fewer than two questions are left as they are.

    Raises:
        UserError: See :func:`harness_ext.inputs.checked_log_probs`.
    """
    values, answers = checked_log_probs(log_probs, labels)

    def find(log_probs: FloatArray, labels: IntArray) -> float:
        if objective == "nll":
            return best_temperature(log_probs, labels)
        return float(np.exp(_minimal_ece(log_probs, labels, bins)))

    return letter_log_softmax(values / held_out_temperatures(values, answers, find, seed)[:, None])


def _by_nll(log_probs: FloatArray, labels: IntArray) -> tuple[float, float, float]:
    def loss(log_t: float) -> float:
        return nll(letter_log_softmax(log_probs, float(np.exp(log_t))), labels)

    best = float(np.log(best_temperature(log_probs, labels)))
    # The 95 % profile likelihood interval: where N times the loss has risen by half the quantile of chi-squared.
    return best, *_ends(loss, loss(best) + CHI2_95 / (2 * len(labels)), best)


def _ends(loss: Callable[[float], float], level: float, best: float) -> tuple[float, float]:
    """Return where a loss rises above a level below and above the best log T, or the bound that it does not reach."""

    def end(bound: float) -> float:
        return bound if loss(bound) <= level else float(brentq(lambda x: loss(x) - level, best, bound, xtol=1e-7))

    return end(LOW), end(HIGH)


def _exp(log_t: float) -> float:
    """Return T, which rounding must not lift above its bound."""
    return min(float(np.exp(log_t)), MOST)


def _by_ece(log_probs: FloatArray, labels: IntArray, bins: int, rng: np.random.Generator) -> tuple[float, float, float]:
    grid = np.linspace(LOW, HIGH, GRID)
    probs = [np.exp(letter_log_softmax(log_probs, t)) for t in np.exp(grid)]
    resampled = []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(labels), size=len(labels))
        resampled.append(grid[np.argmin([conf_ece(p[rows], labels[rows], bins) for p in probs])])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return _minimal_ece(log_probs, labels, bins), float(low), float(high)


def _minimal_ece(log_probs: FloatArray, labels: IntArray, bins: int) -> float:
    """Return the log of the T with the least conf-ECE.

    ECE jumps where a question changes its bin, so a line search would stop anywhere: a grid, then a finer one.
    """

    def eces(grid: FloatArray) -> list[float]:
        return [conf_ece(np.exp(letter_log_softmax(log_probs, t)), labels, bins) for t in np.exp(grid)]

    grid = np.linspace(LOW, HIGH, GRID)
    best = grid[np.argmin(eces(grid))]
    step = grid[1] - grid[0]
    fine = np.linspace(max(best - step, LOW), min(best + step, HIGH), GRID)
    return float(fine[np.argmin(eces(fine))])


def _remarks(log_t: float, log_probs: FloatArray, labels: IntArray) -> list[str]:
    """Return what a user should know of these questions, where T means less than it seems to."""
    rows, highest = len(labels), np.nanmax(log_probs, axis=1)
    own = log_probs[np.arange(rows), labels]
    bound = f"T = {np.exp(log_t):.4g} lies at a bound of its range [0.01, 100]: "
    if (own == highest).all():
        tied = count_ties(log_probs)
        if not tied:
            return [
                f"the most likely letter is right in all {rows} questions, so that any lower T fits them as well: T "
                "says nothing of other questions; fit on more questions, or harder ones"
            ]
        return [
            f"the right letter is tied for first place in {tied} of {rows} questions and is the most likely one in all "
            "others, so that any lower T fits them as well; bfloat16 rounds a model's logits so, float32 does not"
        ]
    if _against(log_probs, labels):
        right, chance = int((top(log_probs)[1] == labels).sum()), float((1 / _letters(log_probs)).sum())
        return [
            f"the letters' order is against the right answer ({right} of {rows} answers are right, by chance it were "
            f"{chance:.0f}): check the gold indices"
        ]
    if log_t - LOW < 1e-3:
        return [f"{bound}these questions ask for a lower one; check that the values are log-likelihoods"]
    if HIGH - log_t < 1e-3:
        return [f"{bound}the letters' order says nothing about the right answer"]
    if not _signal(log_probs, labels):
        return [
            "at its best T the model's letters are not significantly better than equal probabilities: they carry no "
            "signal on these questions"
        ]
    return []


def _letters(log_probs: FloatArray) -> IntArray:
    counts: IntArray = (~np.isnan(log_probs)).sum(axis=1)
    return counts


def _against(log_probs: FloatArray, labels: IntArray) -> bool:
    """Score test (one-sided, 2.5 %) of equal probabilities, 1/T = 0, against an order turned around, 1/T < 0."""
    above = log_probs[np.arange(len(labels)), labels] - np.nanmean(log_probs, axis=1)
    return bool(above.sum() < ndtri(0.025) * np.sqrt((above**2).sum()))


def _signal(log_probs: FloatArray, labels: IntArray) -> bool:
    """Likelihood-ratio test (5 %) of the best T against equal probabilities, which is 1/T = 0."""
    best = best_temperature(log_probs, labels)
    chance = float(np.mean(np.log(_letters(log_probs))))
    return 2 * len(labels) * (chance - nll(letter_log_softmax(log_probs, best), labels)) > CHI2_95
