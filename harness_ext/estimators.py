"""Compute the calibration measures that ``rescore`` and ``report`` add to the harness's table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness_ext.binning import FloatArray, IntArray, bin_index, bin_table, equal_mass_edges
from harness_ext.errors import UserError

BoolArray = NDArray[np.bool_]


def equal_mass_ece(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> float:
    """Compute conf-ECE over bins with equal numbers of questions (Nixon et al. 2019).

    Args:
        confidence: Shape (N,), in [0, 1].
        correct: Shape (N,), whether the prediction is right.
        n_bins: Number of bins; ties among the confidences can merge some.

    Returns:
        A number in [0, 1].
    """
    table = bin_table(confidence, correct, equal_mass_edges(confidence, n_bins))
    return float(np.nansum(table.count * np.abs(table.accuracy - table.confidence)) / len(confidence))


def debiased_ece(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> float:
    """Compute the root of the debiased squared calibration error (Kumar et al. 2019, section 5).

    The variance of a bin's accuracy, a(1 - a)/(n - 1), is subtracted from its squared gap; a
    negative total gives 0. Bins are equal-mass; those with fewer than two questions are left out,
    because they have no variance.

    Args:
        confidence: Shape (N,), in [0, 1].
        correct: Shape (N,), whether the prediction is right.
        n_bins: Number of bins; ties among the confidences can merge some.

    Returns:
        A number in [0, 1]. This is an L2 error: without noise it is at least the L1 error of
        :func:`equal_mass_ece`.
    """
    table = bin_table(confidence, correct, equal_mass_edges(confidence, n_bins))
    used = table.count > 1
    count, accuracy = table.count[used], table.accuracy[used]
    gap = (accuracy - table.confidence[used]) ** 2 - accuracy * (1 - accuracy) / (count - 1)
    return float(np.sqrt(max(0.0, (gap * count).sum() / len(confidence))))


def debiased_cw_ece(probs: FloatArray, gold: IntArray, n_bins: int = 10) -> float:
    """Compute the root mean square of the letters' debiased errors (Kumar et al. 2019, marginal calibration error).

    Args:
        probs: Shape (N, K), rows summing to 1 over the question's letters, NaN where the letter is absent.
        gold: Index of the right letter, shape (N,).
        n_bins: Number of equal-mass bins of each letter, over the questions that have it.

    Returns:
        A number in [0, 1], see :func:`debiased_ece`.
    """
    seen = [(letter, values[~np.isnan(values)], ~np.isnan(values)) for letter, values in enumerate(probs.T)]
    errors = [debiased_ece(values, gold[has] == letter, n_bins) for letter, values, has in seen if len(values)]
    return float(np.sqrt(np.mean(np.square(errors))))


def maximum_calibration_error(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> float:
    """Compute the largest gap of accuracy and confidence in a bin (Guo et al. 2017), in [0, 1]."""
    table = bin_table(confidence, correct, n_bins)
    return float(np.nanmax(np.abs(table.accuracy - table.confidence)))


#: Steps of the grid that confidences are rounded to before they are smoothed. With 20 times as many, smooth ECE
#: changes by less than 1e-4, and only below 0.01.
GRID = 2000
#: Precision of the search for the kernel's width.
NARROWEST = 1e-3


def smooth_ece(confidence: FloatArray, correct: BoolArray) -> float:
    """Compute smooth ECE, which has no bins (Blasiok & Nakkiran 2023).

    A reflected Gaussian kernel smooths the gap between accuracy and confidence. Its width sigma is
    the one at which the error equals sigma, found by bisection; there is no parameter to choose.

    Args:
        confidence: Shape (N,), in [0, 1].
        correct: Shape (N,), whether the prediction is right.

    Returns:
        A number in [0, 1].
    """
    gaps = _gaps_on_grid(confidence, correct)
    low, high = 0.0, 1.0
    while high - low > NARROWEST:
        middle = (low + high) / 2
        if middle < _smoothed_size(gaps, middle):
            low = middle
        else:
            high = middle
    return _smoothed_size(gaps, high)


def smooth_ece_at(confidence: FloatArray, correct: BoolArray, sigma: float) -> float:
    """Compute smooth ECE at a kernel width sigma > 0: the integral of the absolute smoothed gap."""
    return _smoothed_size(_gaps_on_grid(confidence, correct), sigma)


def _gaps_on_grid(confidence: FloatArray, correct: BoolArray) -> FloatArray:
    """Return each grid point's share of the mean gap, shape (GRID + 1,)."""
    gap = (np.asarray(correct, dtype=np.float64) - confidence) / len(confidence)
    return np.bincount(np.round(confidence * GRID).astype(np.int64), gap, GRID + 1).astype(np.float64)


def _smoothed_size(gaps: FloatArray, sigma: float) -> float:
    # Reflecting at both 0 and 1 equals a circular convolution over twice the length. An end is its own reflection.
    circle = np.concatenate([gaps, gaps[-2:0:-1]])
    circle[[0, GRID]] *= 2
    kernel = np.exp(-0.5 * (np.pi * sigma * np.arange(GRID + 1)) ** 2)
    smoothed = np.abs(np.fft.irfft(np.fft.rfft(circle) * kernel)[: GRID + 1])
    return float(smoothed.sum() - (smoothed[0] + smoothed[-1]) / 2)


class BrierParts(NamedTuple):
    """Hold the decomposition of the confidence's Brier score (Murphy 1973; Stephenson et al. 2008).

    ``score = reliability - resolution + uncertainty + within``, exactly.
    """

    score: float
    #: Mean squared gap between accuracy and confidence over the bins; 0 if calibrated.
    reliability: float
    #: Mean squared distance of the bins' accuracies from the overall accuracy; higher is better.
    resolution: float
    #: Variance of the outcome, a(1 - a), for the overall accuracy a.
    uncertainty: float
    #: Correction for the spread of confidences within a bin.
    within: float


def brier_parts(confidence: FloatArray, correct: BoolArray, n_bins: int = 10) -> BrierParts:
    """Decompose ``mean((confidence - correct)^2)`` over equal-width bins (:class:`BrierParts`)."""
    right = np.asarray(correct, dtype=np.float64)
    table, overall, rows = bin_table(confidence, right, n_bins), right.mean(), len(right)
    score = np.mean((confidence - right) ** 2)
    reliability = np.nansum(table.count * (table.confidence - table.accuracy) ** 2) / rows
    resolution = np.nansum(table.count * (table.accuracy - overall) ** 2) / rows
    uncertainty = overall * (1 - overall)
    spread = confidence - table.confidence[bin_index(confidence, n_bins)]
    within = np.mean(spread**2 - 2 * spread * right)
    return BrierParts(*map(float, (score, reliability, resolution, uncertainty, within)))


def auroc(confidence: FloatArray, correct: BoolArray) -> float:
    """Compute the probability that a right answer has a higher confidence than a wrong one.

    This is the area under the ROC curve; a tie counts one half (Hanley & McNeil 1982).

    Args:
        confidence: Shape (N,).
        correct: Shape (N,), whether the prediction is right.

    Returns:
        A number in [0, 1], or NaN if all answers are right or all are wrong.
    """
    correct = np.asarray(correct, dtype=bool)
    right, wrong = np.sort(confidence[correct]), np.sort(confidence[~correct])
    if not len(right) or not len(wrong):
        return float("nan")
    below, up_to = (np.searchsorted(wrong, right, side) for side in ("left", "right"))
    return float((below.mean() + up_to.mean()) / (2 * len(wrong)))


def accuracy_at_coverage(confidence: FloatArray, correct: BoolArray, coverage: float) -> float:
    """Compute accuracy on the most confident share of the questions.

    Questions tied at the threshold count with their mean accuracy.

    Args:
        confidence: Shape (N,).
        correct: Shape (N,), whether the prediction is right.
        coverage: Share of the questions that is answered, in (0, 1].

    Returns:
        A number in [0, 1].

    Raises:
        UserError: ``coverage`` is outside (0, 1].

    Example:
        >>> accuracy_at_coverage(np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, True, False, False]), 0.5)
        1.0
    """
    if not 0 < coverage <= 1:
        raise UserError(f"coverage is {coverage!r}; give a share above 0 and at most 1")
    answered = max(1, round(coverage * len(confidence)))
    border = np.partition(confidence, -answered)[-answered]
    above, tied = confidence > border, confidence == border
    right = np.asarray(correct, dtype=np.float64)
    return float((right[above].sum() + right[tied].mean() * (answered - above.sum())) / answered)
