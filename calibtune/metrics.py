"""Metrics of calibration on arrays: what the harness's table holds, for a notebook.

One convention: ``probs`` are probabilities, ``log_probs`` natural logarithms of them, both of shape (N, K) for N
questions of up to K letters, NaN where a question has fewer letters; ``labels`` are the indices of the right letters,
shape (N,). ``probs`` must sum to 1. ``log_probs`` need not: they are normalized over the question's letters first, as
the harness does with what a model says. All is computed in float64, whatever the precision of the arrays.

Example:
    >>> import numpy as np
    >>> probs = np.array([[0.8, 0.2, np.nan], [0.5, 0.3, 0.2]])
    >>> labels = np.array([0, 1])
    >>> accuracy(probs, labels)
    0.5
    >>> round(nll(np.log(probs), labels), 4)
    0.7136
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from calibtune.results.measures import floor_measures, further_measures, harness_measures, refinement_measures
from harness_ext import calibration
from harness_ext.binning import Edge, FloatArray
from harness_ext.errors import UserError
from harness_ext.inputs import checked_log_probs, checked_probs
from harness_ext.registry import BINS

__all__ = ["accuracy", "brier", "conf_ece", "cw_ece", "floors", "letter_probs", "nll", "refinement", "summary"]


def conf_ece(probs: ArrayLike, labels: ArrayLike, bins: int = 10, edge: Edge = "left") -> float:
    """Compute the expected calibration error of the confidence (paper Eq 19).

    Args:
        probs: Probabilities, shape (N, K), rows summing to 1, NaN where a question has fewer letters.
        labels: Index of the right letter, shape (N,).
        bins: Number of equal-width bins, 1 to 200.
        edge: Whether bins are closed on the "left", [a, b), or on the "right", (a, b].

    Returns:
        A number in [0, 1]; 0 is calibrated. It is biased upwards on few questions.

    Raises:
        UserError: The arrays do not fit together, or hold no probabilities; the row and the value are named.

    Example:
        >>> round(conf_ece([[0.8, 0.2], [0.7, 0.3]], [0, 1], bins=15), 4)
        0.45
    """
    values, answers = checked_probs(probs, labels)
    return calibration.conf_ece(values, answers, _count(bins), edge)


def cw_ece(probs: ArrayLike, labels: ArrayLike, bins: int = 10, edge: Edge = "left") -> float:
    """Compute the class-wise expected calibration error (paper Eq 20), the mean over the letters.

    Args:
        probs: Probabilities, shape (N, K), rows summing to 1, NaN where a question has fewer letters.
        labels: Index of the right letter, shape (N,).
        bins: Number of equal-width bins, 1 to 200.
        edge: Whether bins are closed on the "left", [a, b), or on the "right", (a, b].

    Returns:
        A number in [0, 1]; 0 is calibrated.

    Raises:
        UserError: The arrays do not fit together, or hold no probabilities; the row and the value are named.

    Example:
        >>> round(cw_ece([[0.8, 0.2], [0.7, 0.3]], [0, 1]), 4)
        0.45
    """
    values, answers = checked_probs(probs, labels)
    return calibration.cw_ece(values, answers, _count(bins), edge)


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Compute the Brier score: squared distance to the right answer, summed over letters, averaged over questions.

    Args:
        probs: Probabilities, shape (N, K), rows summing to 1, NaN where a question has fewer letters.
        labels: Index of the right letter, shape (N,).

    Returns:
        A number in [0, 2]; lower is better.

    Raises:
        UserError: The arrays do not fit together, or hold no probabilities; the row and the value are named.

    Example:
        >>> brier([[0.5, 0.5]], [0])
        0.5
    """
    return calibration.brier(*checked_probs(probs, labels))


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Compute the share of questions whose most probable letter is right; of equal ones the first counts.

    Args:
        probs: Probabilities, shape (N, K), rows summing to 1, NaN where a question has fewer letters.
        labels: Index of the right letter, shape (N,).

    Returns:
        A number in [0, 1].

    Raises:
        UserError: The arrays do not fit together, or hold no probabilities; the row and the value are named.
    """
    return calibration.accuracy(*checked_probs(probs, labels))


def nll(log_probs: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean negative log-probability of the right letter.

    Args:
        log_probs: Log-probabilities, shape (N, K), NaN where a question has fewer letters; normalized over them first.
        labels: Index of the right letter, shape (N,).

    Returns:
        Nats, from 0 up; lower is better. Equal probabilities of K letters give ln K.

    Raises:
        UserError: The arrays do not fit together, or hold probabilities; the row and the value are named.

    Example:
        >>> round(nll([[-3.0, -3.0]], [0]), 4)
        0.6931
    """
    values, answers = checked_log_probs(log_probs, labels)
    return calibration.nll(calibration.letter_log_softmax(values), answers)


def letter_probs(log_probs: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Compute probabilities over each question's letters (paper Eq 1).

    Args:
        log_probs: Log-probabilities, shape (N, K), NaN where a question has fewer letters.
        temperature: T > 0; the log-probabilities are divided by it first.

    Returns:
        Shape (N, K), rows summing to 1, NaN kept.

    Raises:
        UserError: The array holds no log-probabilities, or T is not a finite number above 0.

    Example:
        >>> letter_probs([[-3.0, -3.0]]).tolist()
        [[0.5, 0.5]]
    """
    values, _ = checked_log_probs(log_probs)
    return np.exp(calibration.letter_log_softmax(values, temperature))


def summary(
    log_probs: ArrayLike,
    labels: ArrayLike,
    bins: tuple[int, ...] = BINS,
    edge: Edge = "left",
    temperature: float = 1.0,
    further: bool = False,
) -> dict[str, float]:
    """Compute the numbers of the harness's table, with 95 % intervals of the ECEs.

    Args:
        log_probs: Log-probabilities as the model gave them, shape (N, K), NaN where a question has fewer letters.
        labels: Index of the right letter, shape (N,).
        bins: Numbers of equal-width bins.
        edge: Whether bins are closed on the "left", [a, b), or on the "right", (a, b].
        temperature: T > 0 that the log-probabilities are divided by first.
        further: Add what tells an ECE's noise from its error (:func:`floors`), what calibration costs
            (:func:`refinement`), mean confidence, equal-mass and smooth ECE, maximum calibration error, the Brier
            score's parts, AUROC, accuracy at coverage.

    Returns:
        ``acc``, ``nll``, ``brier``, ``letter_mass``, and for each number of bins M ``conf_ece_M``, ``conf_ece_M_low``,
        ``conf_ece_M_high`` and the same of ``cw_ece_M``. ``letter_mass`` means something only for log-probabilities
        that are not normalized over the letters.

    Raises:
        UserError: The arrays do not fit together, or hold probabilities; the row and the value are named.

    Example:
        >>> found = summary([[-1.0, -2.0], [-1.5, -0.5]], [0, 0], bins=(10,))
        >>> found["acc"], round(found["conf_ece_10"], 4)
        (0.5, 0.2311)
    """
    values, answers = checked_log_probs(log_probs, labels)
    counts = tuple(_count(count) for count in bins)
    numbers = harness_measures(values, answers, temperature, counts, edge)
    return {**numbers, **further_measures(values, answers, temperature, counts, edge)} if further else numbers


def floors(
    log_probs: ArrayLike,
    labels: ArrayLike,
    bins: tuple[int, ...] = BINS,
    edge: Edge = "left",
    temperature: float = 1.0,
) -> dict[str, float]:
    """Compute what a perfectly calibrated model would show, and by how much and how surely this one shows more.

    Args:
        log_probs: As for :func:`summary`.
        labels: As for :func:`summary`.
        bins: As for :func:`summary`.
        edge: As for :func:`summary`.
        temperature: As for :func:`summary`.

    Returns:
        For each number of bins M ``conf_ece_M_floor``, the mean conf-ECE of a perfectly calibrated model with these
        probabilities; ``conf_ece_M_floor_95``, below which 95 % of its draws lie; ``conf_ece_M_excess``, conf-ECE less
        its floor; ``conf_ece_M_p``, the p-value of "calibrated" (consistency resampling); ``conf_ece_M_debiased``, a
        debiased ECE (Kumar et al. 2019); and the same of ``cw_ece_M``.

    Raises:
        UserError: The arrays do not fit together, or hold probabilities; the row and the value are named.

    Example:
        >>> found = floors(np.log([[0.8, 0.2]]), [0], bins=(10,))
        >>> round(found["conf_ece_10_floor"], 4), round(found["conf_ece_10_excess"], 4)
        (0.32, -0.12)
    """
    values, answers = checked_log_probs(log_probs, labels)
    return floor_measures(values, answers, temperature, tuple(_count(count) for count in bins), edge)


def refinement(log_probs: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> dict[str, float]:
    """Split NLL and Brier score into missing knowledge and what calibration costs.

    Args:
        log_probs: As for :func:`summary`.
        labels: As for :func:`summary`.
        temperature: As for :func:`summary`.

    Returns:
        ``nll_refined`` and ``brier_refined``, after each question was scaled by the T that is best for other
        questions: missing knowledge. ``nll_calibration`` and ``brier_calibration``, by how much less that is. All are
        NaN if the questions are so few or so easy that some have no best T.

    Raises:
        UserError: The arrays do not fit together, or hold probabilities; the row and the value are named.

    Example:
        >>> found = refinement(np.log([[0.99, 0.01]] * 100), [0, 0, 0, 1] * 25)  # sure, and 75 % right
        >>> round(found["nll_refined"], 2), round(found["nll_calibration"], 2)
        (0.57, 0.59)
    """
    values, answers = checked_log_probs(log_probs, labels)
    return refinement_measures(values, answers, temperature)


def _count(bins: int) -> int:
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)):
        raise UserError(f"bins is {bins!r}; give a whole number of bins")
    return int(bins)
