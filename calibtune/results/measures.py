"""Compute all metrics of a model on a task by name, for ``rescore``, ``report`` and ``fit``."""

from __future__ import annotations

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
    debiased_ece,
    equal_mass_ece,
    maximum_calibration_error,
    smooth_ece,
)
from harness_ext.floor import ece_floor
from harness_ext.intervals import ece_interval
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


def further_measures(loglikelihoods: FloatArray, gold: IntArray, temperature: float = 1.0) -> dict[str, float]:
    """Compute the metrics that are not in the harness's table (:mod:`harness_ext.estimators`).

    Args:
        loglikelihoods: As in :func:`harness_measures`.
        gold: As in :func:`harness_measures`.
        temperature: As in :func:`harness_measures`.

    Returns:
        Mean confidence; the floor of each ECE, with ``_low`` and ``_high``; equal-mass, debiased and
        smooth ECE; maximum calibration error; the Brier decomposition of the confidence and its
        AUROC; accuracy at 25, 50 and 75 % coverage.

    Raises:
        UserError: See :func:`harness_ext.calibration.validate_rows`.
    """
    loglikelihoods, gold = validate_rows(loglikelihoods, gold)
    probs = np.exp(letter_log_softmax(loglikelihoods, temperature))
    confidence, predicted = top(probs)
    correct = predicted == gold
    parts = brier_parts(confidence, correct)
    floors = {f"{ece}_{bins}_floor": ece_floor(probs, ece, bins) for ece in ECES for bins in BINS}
    return {
        "mean_confidence": float(confidence.mean()),
        **{name: floor.mean for name, floor in floors.items()},
        **{f"{name}_{end}": getattr(floor, end) for name, floor in floors.items() for end in ("low", "high")},
        "equal_mass_ece_10": equal_mass_ece(confidence, correct),
        "debiased_ece_10": debiased_ece(confidence, correct),
        "smooth_ece": smooth_ece(confidence, correct),
        "max_ce_10": maximum_calibration_error(confidence, correct),
        **{f"brier_{field}": value for field, value in parts._asdict().items()},
        "auroc": auroc(confidence, correct),
        **{f"acc_at_{share}": accuracy_at_coverage(confidence, correct, share / 100) for share in (25, 50, 75)},
    }
