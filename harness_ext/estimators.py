"""Calibration beyond the harness's table: other bins, no bins, and what confidence is good for."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness_ext.binning import FloatArray, bin_index, bin_table, equal_mass_edges
from harness_ext.errors import ScoringError

BoolArray = NDArray[np.bool_]


def equal_mass_ece(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> float:
    """conf-ECE over bins that hold the same number of questions (Nixon et al. 2019), in [0, 1].

    Args:
        confidence: Shape (N,), in [0, 1].
        correct: Shape (N,), whether the prediction is right.
        n_bins: Bins wanted; tied confidences merge some.
    """
    table = bin_table(confidence, correct, equal_mass_edges(confidence, n_bins))
    return float(np.nansum(table.count * np.abs(table.accuracy - table.confidence)) / len(confidence))


def debiased_ece(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> float:
    """Root of the debiased squared calibration error with equal-mass bins (Kumar, Liang & Ma 2019, section 5).

    From each bin's squared gap the variance of its accuracy, a(1 - a)/(n - 1), is taken off; a negative total gives 0.
    Bins of fewer than two questions are left out, since they have no variance.

    Returns:
        A number in [0, 1]; it is an L2 error, at least the L1 error of :func:`equal_mass_ece` without noise.
    """
    table = bin_table(confidence, correct, equal_mass_edges(confidence, n_bins))
    used = table.count > 1
    count, accuracy = table.count[used], table.accuracy[used]
    gap = (accuracy - table.confidence[used]) ** 2 - accuracy * (1 - accuracy) / (count - 1)
    return float(np.sqrt(max(0.0, (gap * count).sum() / len(confidence))))


def maximum_calibration_error(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> float:
    """Largest gap of accuracy and confidence in any bin that is not empty (Guo et al. 2017), in [0, 1]."""
    table = bin_table(confidence, correct, n_bins)
    return float(np.nanmax(np.abs(table.accuracy - table.confidence)))


#: Points, at least, of the grid on which the kernel is applied.
GRID = 2000
#: Width below which the search for the kernel's width stops.
NARROWEST = 1e-3


def smooth_ece(confidence: FloatArray, correct: BoolArray) -> float:
    """Smooth ECE (Blasiok & Nakkiran 2023): the gap smoothed by a reflected Gaussian kernel, without bins.

    The kernel's width sigma is the one at which the error equals the width, found by bisection; so the result has no
    parameter of ours.

    Returns:
        A number in [0, 1].
    """
    gaps_on = functools.cache(functools.partial(_gaps_on, confidence, correct))

    def error(sigma: float) -> float:
        return _smoothed_size(gaps_on(_points(sigma)), sigma) / len(confidence)

    low, high = 0.0, 1.0
    if error(1.0) >= 1.0:
        return error(1.0)
    while high - low > NARROWEST:
        middle = (low + high) / 2
        if middle < error(middle):
            low = middle
        else:
            high = middle
    return error(high)


def smooth_ece_at(confidence: FloatArray, correct: BoolArray, sigma: float) -> float:
    """Smooth ECE at one kernel width sigma > 0: the integral over [0, 1] of the smoothed gap's size."""
    return _smoothed_size(_gaps_on(confidence, correct, _points(sigma)), sigma) / len(confidence)


def _points(sigma: float) -> int:
    return max(GRID, round(20 / sigma))


def _gaps_on(confidence: FloatArray, correct: BoolArray, points: int) -> FloatArray:
    """Sum of the gaps at each of ``points + 1`` places of [0, 1]."""
    grid = np.round(confidence * points).astype(np.int64)
    gap = np.asarray(correct, dtype=np.float64) - confidence
    return np.bincount(grid, gap, points + 1).astype(np.float64)


def _smoothed_size(gaps: FloatArray, sigma: float) -> float:
    points = len(gaps) - 1
    # Reflecting at 0 and 1 for ever is the same as going round a circle of twice the length.
    circle = np.concatenate([gaps, gaps[-2:0:-1]])
    circle[[0, points]] *= 2
    turns = np.arange(-np.ceil(3 * sigma), np.ceil(3 * sigma) + 1)
    distance = np.arange(2 * points) / points
    kernel = np.exp(-0.5 * ((distance[:, None] + 2 * turns) / sigma) ** 2).sum(axis=1)
    smoothed = np.fft.irfft(np.fft.rfft(circle) * np.fft.rfft(kernel / kernel.sum()), 2 * points)[: points + 1]
    weights = np.ones(points + 1)
    weights[[0, -1]] = 0.5
    return float(weights @ np.abs(smoothed))


class BrierParts(NamedTuple):
    """Brier score of the confidence, taken apart by bins (Murphy 1973; Stephenson et al. 2008).

    ``reliability - resolution + uncertainty + within`` is the score, exactly.
    """

    score: float
    #: Mean squared gap of accuracy and confidence over the bins; 0 is calibrated.
    reliability: float
    #: How far the bins' accuracies lie from the overall one; higher is better.
    resolution: float
    #: Variance of being right, a(1 - a).
    uncertainty: float
    #: What is lost by taking each bin's confidences as one.
    within: float


def brier_parts(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> BrierParts:
    """Decompose ``mean((confidence - correct)^2)`` over equal-width bins; see :class:`BrierParts`."""
    right = np.asarray(correct, dtype=np.float64)
    table, overall, rows = bin_table(confidence, right, n_bins), right.mean(), len(right)
    score = np.mean((confidence - right) ** 2)
    reliability = np.nansum(table.count * (table.confidence - table.accuracy) ** 2) / rows
    resolution = np.nansum(table.count * (table.accuracy - overall) ** 2) / rows
    uncertainty = overall * (1 - overall)
    index = bin_index(confidence, n_bins)
    spread = confidence - table.confidence[index]
    within = np.mean(spread**2 - 2 * spread * (right - table.accuracy[index]))
    return BrierParts(*map(float, (score, reliability, resolution, uncertainty, within)))


def auroc(confidence: FloatArray, correct: BoolArray) -> float:
    """Chance that a right answer is more confident than a wrong one, ties half (Hanley & McNeil 1982), in [0, 1].

    Returns:
        NaN where all answers are right, or all wrong.
    """
    correct = np.asarray(correct, dtype=bool)
    right, wrong = np.sort(confidence[correct]), np.sort(confidence[~correct])
    if not len(right) or not len(wrong):
        return float("nan")
    below, up_to = (np.searchsorted(wrong, right, side) for side in ("left", "right"))
    return float((below.mean() + up_to.mean()) / (2 * len(wrong)))


def accuracy_at_coverage(confidence: FloatArray, correct: BoolArray, coverage: float) -> float:
    """Accuracy on the most confident share of the questions; tied questions at the border count by their mean.

    Args:
        confidence: Shape (N,).
        correct: Shape (N,).
        coverage: Share answered, in (0, 1].

    Raises:
        ScoringError: ``coverage`` is outside (0, 1].

    Example:
        >>> accuracy_at_coverage(np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, True, False, False]), 0.5)
        1.0
    """
    if not 0 < coverage <= 1:
        raise ScoringError(f"coverage is {coverage!r}; give a share above 0 and at most 1")
    answered = max(1, round(coverage * len(confidence)))
    border = np.partition(confidence, -answered)[-answered]
    above, tied = confidence > border, confidence == border
    right = np.asarray(correct, dtype=np.float64)
    return float((right[above].sum() + right[tied].mean() * (answered - above.sum())) / answered)
