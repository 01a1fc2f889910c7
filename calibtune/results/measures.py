"""Compute all metrics of a model on a task by name, for ``rescore``, ``report`` and ``fit``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness_ext.binning import Edge, FloatArray, IntArray
from harness_ext.calibration import (
    accuracy,
    brier,
    letter_log_softmax,
    letter_mass,
    nll,
    top,
    validate_rows,
)
from harness_ext.estimators import (
    accuracy_at_coverage,
    auroc,
    brier_parts,
    debiased_cw_ece,
    debiased_ece,
    equal_mass_ece,
    maximum_calibration_error,
    smooth_ece,
)
from harness_ext.floor import ece_floors
from harness_ext.intervals import ece_interval
from harness_ext.refinement import LEAST, held_out_temperatures
from harness_ext.registry import BINS, ECES


def harness_measures(
    loglikelihoods: FloatArray,
    gold: IntArray,
    temperature: float = 1.0,
    bins: tuple[int, ...] = BINS,
    edge: Edge = "left",
) -> dict[str, float]:
    """Compute the metrics of the harness's table, by their names there.

    Args:
        loglikelihoods: Raw letter log-likelihoods, shape (N, K), NaN where the letter is absent.
        gold: Index of the right letter, shape (N,).
        temperature: T > 0, by which the log-likelihoods are divided.
        bins: Numbers of bins.
        edge: See :func:`harness_ext.binning.bin_index`.

    Returns:
        ``acc``, ``nll``, ``brier``, ``letter_mass``, and for each number of bins M ``conf_ece_M``
        and ``cw_ece_M``, each with ``_low`` and ``_high``.

    Raises:
        UserError: See :func:`harness_ext.calibration.validate_rows`.
    """
    loglikelihoods, gold = validate_rows(loglikelihoods, gold)
    log_probs = letter_log_softmax(loglikelihoods, temperature)
    probs = np.exp(log_probs)
    numbers = {
        "acc": accuracy(probs, gold),
        "nll": nll(log_probs, gold),
        "brier": brier(probs, gold),
        "letter_mass": letter_mass(loglikelihoods),
    }
    for count in bins:
        for name, gaps in ECES.items():
            interval = ece_interval(gaps(probs, gold, count, edge))
            ends = {"": interval.estimate, "_low": interval.low, "_high": interval.high}
            numbers |= {f"{name}_{count}{end}": float(value) for end, value in ends.items()}
    return numbers


def floor_measures(
    loglikelihoods: FloatArray,
    gold: IntArray,
    temperature: float = 1.0,
    bins: tuple[int, ...] = BINS,
    edge: Edge = "left",
) -> dict[str, float]:
    """Compute what tells an ECE's noise from its error (:mod:`harness_ext.floor`). Arguments: :func:`harness_measures`.

    Returns:
        For each ECE X of the harness's table ``X_floor``, the mean of a perfectly calibrated model with these
        probabilities; ``X_floor_95``, below which 95 % of its draws lie; ``X_excess``, X less its floor; ``X_p``, the
        p-value of "calibrated"; and ``X_debiased``, over equal-mass bins
        (:func:`harness_ext.estimators.debiased_ece`).

    Raises:
        UserError: See :func:`harness_ext.calibration.validate_rows`.
    """
    loglikelihoods, gold = validate_rows(loglikelihoods, gold)
    probs = np.exp(letter_log_softmax(loglikelihoods, temperature))
    confidence, predicted = top(probs)
    debiased = {
        "conf_ece": lambda count: debiased_ece(confidence, predicted == gold, count),
        "cw_ece": lambda count: debiased_cw_ece(probs, gold, count),
    }
    eces = {(name, count): gaps(probs, gold, count, edge) for count in bins for name, gaps in ECES.items()}
    numbers: dict[str, float] = {}
    for ((name, count), gaps), floor in zip(eces.items(), ece_floors(probs, list(eces.values())), strict=True):
        numbers |= {
            f"{name}_{count}_floor": floor.mean,
            f"{name}_{count}_floor_95": floor.high,
            f"{name}_{count}_excess": gaps.ece() - floor.mean,
            f"{name}_{count}_p": floor.p,
            f"{name}_{count}_debiased": debiased[name](count),
        }
    return numbers


def calibrated_p(numbers: Mapping[str, float]) -> float:
    """Return the lesser p-value of "calibrated" of the two ECEs with 10 bins, from :func:`floor_measures`."""
    return min(numbers["conf_ece_10_p"], numbers["cw_ece_10_p"])


def refinement_measures(loglikelihoods: FloatArray, gold: IntArray, temperature: float = 1.0) -> dict[str, float]:
    """Split NLL and Brier score into what calibration costs and what is left (arguments: :func:`harness_measures`).

    Returns:
        ``nll_refined`` and ``brier_refined``, after each question was scaled by the T that is best for other questions
        (:func:`harness_ext.refinement.held_out_temperatures`): what is left is missing knowledge. ``nll_calibration``
        and ``brier_calibration``: by how much less that is. All are NaN if the questions are so few or so easy that
        some have no best T.

    Raises:
        UserError: See :func:`harness_ext.calibration.validate_rows`.
    """
    loglikelihoods, gold = validate_rows(loglikelihoods, gold)
    log_probs = letter_log_softmax(loglikelihoods, temperature)
    held_out = held_out_temperatures(loglikelihoods, gold)
    refined = letter_log_softmax(loglikelihoods / held_out[:, None])
    numbers: dict[str, float] = {}
    for name, whole, left in (
        ("nll", nll(log_probs, gold), nll(refined, gold)),
        ("brier", brier(np.exp(log_probs), gold), brier(np.exp(refined), gold)),
    ):
        known = left if held_out.min() > 1.01 * LEAST else float("nan")
        numbers |= {f"{name}_refined": known, f"{name}_calibration": whole - known}
    return numbers


def further_measures(
    loglikelihoods: FloatArray,
    gold: IntArray,
    temperature: float = 1.0,
    bins: tuple[int, ...] = BINS,
    edge: Edge = "left",
) -> dict[str, float]:
    """Compute the metrics that are not in the harness's table. Arguments: :func:`harness_measures`.

    Returns:
        Those of :func:`floor_measures` and :func:`refinement_measures`; mean confidence; equal-mass and smooth ECE;
        maximum calibration error; the Brier decomposition of the confidence and its AUROC; accuracy at 25, 50 and 75 %
        coverage.

    Raises:
        UserError: See :func:`harness_ext.calibration.validate_rows`.
    """
    loglikelihoods, gold = validate_rows(loglikelihoods, gold)
    probs = np.exp(letter_log_softmax(loglikelihoods, temperature))
    confidence, predicted = top(probs)
    correct = predicted == gold
    parts = brier_parts(confidence, correct)
    return {
        **floor_measures(loglikelihoods, gold, temperature, bins, edge),
        **refinement_measures(loglikelihoods, gold, temperature),
        "mean_confidence": float(confidence.mean()),
        "equal_mass_ece_10": equal_mass_ece(confidence, correct),
        "smooth_ece": smooth_ece(confidence, correct),
        "max_ce_10": maximum_calibration_error(confidence, correct),
        **{f"brier_{field}": value for field, value in parts._asdict().items()},
        "auroc": auroc(confidence, correct),
        **{f"acc_at_{share}": accuracy_at_coverage(confidence, correct, share / 100) for share in (25, 50, 75)},
    }
