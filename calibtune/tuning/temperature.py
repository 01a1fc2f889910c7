"""Temperature scaling: one T on the letters' log-likelihoods (Guo et al. 2017; paper section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2

from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import conf_ece, letter_log_softmax, nll, validate_rows

Objective = Literal["nll", "ece"]
#: Bounds of log T.
LOW, HIGH = float(np.log(0.01)), float(np.log(100.0))
#: Resamples for the interval of the T that minimizes ECE, and the grid that its steps are searched on.
RESAMPLES, GRID = 200, 121


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature."""

    temperature: float
    #: 95 % interval of T.
    low: float
    high: float
    objective: Objective
    #: Questions fitted on.
    questions: int
    #: What a user should know: T at a bound, letters without signal.
    warnings: tuple[str, ...]


def fit_temperature(
    loglikelihoods: FloatArray, gold: IntArray, objective: Objective = "nll", bins: int = 10, seed: int = 0
) -> Temperature:
    """Find the T that minimizes the NLL (a maximum-likelihood estimate) or conf-ECE (as the paper searches it).

    Args:
        loglikelihoods: Raw letter log-likelihoods, shape (N, K), NaN where a question has fewer letters.
        gold: Index of the right letter, shape (N,).
        objective: What T minimizes.
        bins: M of conf-ECE.
        seed: Of the resamples for the ECE objective's interval.

    Returns:
        T in [0.01, 100] with an interval: of the profile likelihood for "nll", bootstrap percentiles for "ece".

    Raises:
        ScoringError: See :func:`harness_ext.calibration.validate_rows`.
    """
    loglikelihoods, gold = validate_rows(loglikelihoods, gold)
    if objective == "nll":
        best, low, high = _by_nll(loglikelihoods, gold)
    else:
        best, low, high = _by_ece(loglikelihoods, gold, bins, np.random.default_rng(seed))
    warnings = []
    if min(best - LOW, HIGH - best) < 1e-3:
        warnings.append(
            f"T = {np.exp(best):.4g} lies at a bound of its range [0.01, 100]: the letters' order says "
            + ("nothing about the right answer" if best > 0 else "all about it, on these questions")
        )
    elif not _signal(loglikelihoods, gold):
        warnings.append(
            "at its best T the model's letters are not significantly better than equal probabilities: they carry no "
            "signal on these questions"
        )
    values = [min(float(np.exp(x)), 100.0) for x in (best, low, high)]
    return Temperature(values[0], values[1], values[2], objective, len(gold), tuple(warnings))


def _by_nll(loglikelihoods: FloatArray, gold: IntArray) -> tuple[float, float, float]:
    def loss(log_t: float) -> float:
        return nll(letter_log_softmax(loglikelihoods, float(np.exp(log_t))), gold)

    best = _minimal_nll(loglikelihoods, gold)
    # The 95 % profile likelihood interval: where N times the loss has risen by half the quantile of chi-squared.
    level = loss(best) + chi2.ppf(0.95, 1) / (2 * len(gold))

    def end(bound: float) -> float:
        return bound if loss(bound) <= level else float(brentq(lambda x: loss(x) - level, best, bound, xtol=1e-7))

    return best, end(LOW), end(HIGH)


def _by_ece(
    loglikelihoods: FloatArray, gold: IntArray, bins: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    # ECE jumps where a question changes its bin, so a line search would stop anywhere: a grid, then a finer one.
    grid = np.linspace(LOW, HIGH, GRID)
    probs = [np.exp(letter_log_softmax(loglikelihoods, t)) for t in np.exp(grid)]
    best = int(np.argmin([conf_ece(p, gold, bins) for p in probs]))
    fine = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)], GRID)
    eces = [conf_ece(np.exp(letter_log_softmax(loglikelihoods, t)), gold, bins) for t in np.exp(fine)]
    resampled = []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(gold), size=len(gold))
        resampled.append(grid[np.argmin([conf_ece(p[rows], gold[rows], bins) for p in probs])])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(fine[np.argmin(eces)]), float(low), float(high)


def _signal(loglikelihoods: FloatArray, gold: IntArray) -> bool:
    """Likelihood-ratio test (5 %) of the best T against equal probabilities, which is 1/T = 0."""
    best = _minimal_nll(loglikelihoods, gold)
    chance = float(np.mean(np.log((~np.isnan(loglikelihoods)).sum(axis=1))))
    return 2 * len(gold) * (chance - nll(letter_log_softmax(loglikelihoods, np.exp(best)), gold)) > chi2.ppf(0.95, 1)


def _minimal_nll(loglikelihoods: FloatArray, gold: IntArray) -> float:
    """Log of the T with the least NLL, which is unimodal in log T."""

    def loss(log_t: float) -> float:
        return nll(letter_log_softmax(loglikelihoods, float(np.exp(log_t))), gold)

    return float(minimize_scalar(loss, bounds=(LOW, HIGH), method="bounded", options={"xatol": 1e-7}).x)
