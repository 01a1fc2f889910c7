"""Compute the floor of an ECE: what a perfectly calibrated model of the same probabilities would show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harness_ext.binning import FloatArray
from harness_ext.calibration import top
from harness_ext.registry import ECES

SEED = 0
DRAWS = 200


class Floor(NamedTuple):
    """Hold the ECE of a perfectly calibrated model: its mean over the draws, and where 95 % of them lie."""

    mean: float
    low: float
    high: float


def ece_floor(
    probs: FloatArray, ece: str = "conf_ece", n_bins: int = 10, draws: int = DRAWS, seed: int = SEED
) -> Floor:
    """Compute the ECE that is left where nothing but noise is.

    An ECE sums absolute gaps, so it is above 0 for a perfectly calibrated model too. Each question's right answer
    is drawn with the model's own probabilities, which makes the model perfectly calibrated, and the ECE computed.

    Args:
        probs: Shape (N, K), rows summing to 1 over the question's letters, NaN where the letter is absent.
        ece: A name in :data:`harness_ext.registry.ECES`.
        n_bins: M equal-width bins.
        draws: Number of draws of all right answers.
        seed: Seed of the draws; the same input gives the same floor.

    Returns:
        Mean, and the 2.5 and 97.5 % quantiles of the draws.

    Example:
        >>> ece_floor(np.array([[1.0, 0.0], [0.0, 1.0]]))
        Floor(mean=0.0, low=0.0, high=0.0)
    """
    predicted = top(probs)[1]
    gaps = ECES[ece](probs, predicted, n_bins)
    # What a perfectly calibrated model is right about in each cell: the sum of its probabilities.
    expected = gaps.right - gaps.sums()
    cumulative = np.cumsum(np.nan_to_num(probs), axis=1)
    cumulative /= cumulative[:, -1:]
    rng, questions = np.random.default_rng(seed), np.arange(len(probs))
    found = np.empty(draws)
    for draw in range(draws):
        answer = (rng.random((len(probs), 1)) >= cumulative).sum(axis=1)
        # conf-ECE has one cell a question, which counts if the prediction is right; cw-ECE one a letter.
        one = gaps.cell.shape[1] == 1
        right = gaps.cell[answer == predicted, 0] if one else gaps.cell[questions, answer]
        found[draw] = gaps.weight @ np.abs(np.bincount(right, minlength=len(gaps.weight)) - expected)
    return Floor(float(found.mean()), *(float(end) for end in np.quantile(found, [0.025, 0.975])))
