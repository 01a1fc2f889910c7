"""What log-likelihoods are like that come from a model that scores the letters: for the filter and samples files."""

from __future__ import annotations

import itertools
import logging

import numpy as np

from harness_ext.binning import FloatArray
from harness_ext.errors import ScoringError

logger = logging.getLogger(__name__)

#: Two letters may tie by chance in a question or two in half precision, not in as many as this.
TIES = 10
#: Half-precision rounding may lift the sum of the letters' probabilities this far above 1.
MASS_LIMIT = 1.05


def check_told_apart(loglikelihoods: FloatArray) -> None:
    """Refuse scores that cannot come from a model that tells the letters apart.

    Args:
        loglikelihoods: Shape (N, K), NaN where a question lacks the letter.

    Raises:
        ScoringError: All letters of all questions have one value, or two letters are alike in each of at least
            ``TIES`` questions.
    """
    if np.all(np.isnan(loglikelihoods) | (loglikelihoods == loglikelihoods[:, :1])):
        raise ScoringError(
            f"the backend gave all letters of each of the {len(loglikelihoods)} questions the same log-likelihood "
            f"(question 0: {loglikelihoods[0, 0].item()!r}); it does not score them"
        )
    for first, second in itertools.combinations(range(loglikelihoods.shape[1]), 2):
        both = loglikelihoods[~np.isnan(loglikelihoods[:, second])]
        if len(both) >= TIES and np.array_equal(both[:, first], both[:, second]):
            raise ScoringError(
                f"letters {chr(65 + first)} and {chr(65 + second)} have the same log-likelihood in all {len(both)} "
                "questions, so they share a token; run `python -m calibtune doctor --model M --tasks T`"
            )
    mass = np.nansum(np.exp(loglikelihoods), axis=1)
    if mass.max() > MASS_LIMIT:
        logger.warning(
            "question %d: its letters' probabilities sum to %.3f; the backend's values are no log-likelihoods",
            int(mass.argmax()),
            mass.max(),
        )
