"""Sanity checks on letter log-likelihoods, for the filter and for samples files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_ext.binning import FloatArray
from harness_ext.errors import UserError

logger = logging.getLogger(__name__)

#: Two letters may tie by chance in a question or two in half precision, not in as many as this.
TIES = 10
#: Half-precision rounding may lift the sum of the letters' probabilities this far above 1.
MASS_LIMIT = 1.05
#: Backends give -9999 or -1e10 for letters that a server did not return. A model's own values do not come near.
SENTINEL = -1000


def is_unseen(answer: Sequence[Any]) -> bool:
    """Return whether a log-likelihood is the bound of a letter that a server did not show, beyond its top tokens.

    ``calibtune eval --backend api`` then leaves open whether greedy decoding gives the letter. Samples files hold it as
    text.
    """
    return len(answer) == 2 and answer[1] in (None, "None")


def check_scored(loglikelihoods: FloatArray) -> None:
    """Refuse values that stand for letters which the backend did not score.

    Args:
        loglikelihoods: Of letters, shape (N, K), NaN where a question lacks the letter.

    Raises:
        UserError: With the first such value and the count of questions.
    """
    missing = loglikelihoods < SENTINEL
    if missing.any():
        row, column = np.argwhere(missing)[0].tolist()
        raise UserError(
            f"the backend gave letter {chr(65 + column)} of question {row} the log-likelihood "
            f"{loglikelihoods[row, column].item()!r}, which stands for a letter that it did not score, as in "
            f"{int(missing.any(axis=1).sum())} of {len(loglikelihoods)} questions; use a backend that scores every "
            "letter, such as hf"
        )


def count_ties(loglikelihoods: FloatArray) -> int:
    """Count the questions whose most likely letters have one value.

    Args:
        loglikelihoods: Shape (N, K), NaN where a question lacks the letter.

    Example:
        >>> count_ties(np.array([[-1.0, -1.0, -2.0], [-1.0, -2.0, -2.0]]))
        1
    """
    best = np.nanmax(loglikelihoods, axis=1, keepdims=True)
    return int(((loglikelihoods == best).sum(axis=1) > 1).sum())


def warn_of_ties(loglikelihoods: FloatArray, source: str) -> None:
    """Log how many questions have letters tied for first place, if any.

    Args:
        loglikelihoods: Shape (N, K), NaN where a question lacks the letter.
        source: What they are of, for the message.
    """
    if ties := count_ties(loglikelihoods):
        logger.warning(
            "%s: %d of %d questions have letters tied for first place, and the first of them counts as the answer; "
            "bfloat16 rounds a model's logits so, `python -m calibtune eval` or float32 does not",
            source,
            ties,
            len(loglikelihoods),
        )


def check_told_apart(loglikelihoods: FloatArray, unseen: NDArray[np.bool_]) -> None:
    """Refuse scores that cannot come from a model that tells the letters apart.

    Args:
        loglikelihoods: Shape (N, K), NaN where a question lacks the letter.
        unseen: Which of them are bounds of letters that a server did not show, shape (N, K). Two such letters of a
            question tell nothing.

    Raises:
        UserError: All letters of all questions have one value, or two letters are alike in each of at least
            ``TIES`` questions.
    """
    if np.all(np.isnan(loglikelihoods) | (loglikelihoods == loglikelihoods[:, :1])):
        raise UserError(
            f"the backend gave all letters of each of the {len(loglikelihoods)} questions the same log-likelihood "
            f"(question 0: {loglikelihoods[0, 0].item()!r}); it does not score them"
        )
    shown = np.where(unseen, np.nan, loglikelihoods)
    for second in range(1, loglikelihoods.shape[1]):
        known = ~np.isnan(loglikelihoods[:, second])
        same = shown[known, :second] == shown[known][:, [second]]
        neither = unseen[known, :second] & unseen[known][:, [second]]
        alike = np.flatnonzero((same | neither).all(axis=0) & (same.sum(axis=0) >= TIES))
        if len(alike):
            raise UserError(
                f"letters {chr(65 + alike[0])} and {chr(65 + second)} have the same log-likelihood in all "
                f"{same[:, alike[0]].sum()} questions, so they share a token; run `python -m calibtune doctor "
                "--model M --tasks T`"
            )
    mass = np.nansum(np.exp(shown), axis=1)
    if mass.max() > MASS_LIMIT:
        logger.warning(
            "question %d: its letters' probabilities sum to %.3f; the backend's values are no log-likelihoods",
            int(mass.argmax()),
            mass.max(),
        )
