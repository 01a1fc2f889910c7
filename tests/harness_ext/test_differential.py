"""A thousand random sets, each number beside another library's or, where none does it so, beside a loop's."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from harness_ext import calibration

SETS = 1000
#: Confidences on the edges of 10 and 14 bins, ties of all letters, certainty.
EDGES = [1 / 4, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 5 / 14, 6 / 14, 9 / 14, 13 / 14]


def one_set(seed):
    """Return probabilities of 2 to 40 questions with 2 to 6 letters: random, tied, on an edge or certain."""
    rng = np.random.default_rng(seed)
    rows, letters = rng.integers(2, 41), rng.integers(2, 7)
    probs = rng.dirichlet(np.full(letters, rng.choice([0.1, 1.0, 5.0])), rows)
    kind = rng.integers(4, size=rows)
    probs[kind == 1] = 1 / letters
    on_edge = kind == 2
    confidence = np.maximum(rng.choice(EDGES, on_edge.sum()), 1 / letters)
    probs[on_edge] = ((1 - confidence) / (letters - 1))[:, None]
    probs[on_edge, rng.integers(letters, size=on_edge.sum())] = confidence
    return probs, rng.integers(letters, size=rows)


def binned_error(confidence, right, bins):
    """Compute an ECE by its definition, question by question; a bin is [a, b), the last one closed."""
    gaps = np.zeros(bins)
    for value, hit in zip(confidence, right, strict=True):
        inside = [m for m in range(bins) if m / bins <= value and (value < (m + 1) / bins or m == bins - 1)]
        gaps[inside[0]] += hit - value
    return np.abs(gaps).sum() / len(confidence)


@pytest.fixture(scope="module")
def sets():
    return [one_set(seed) for seed in range(SETS)]


@pytest.mark.parametrize("bins", [10, 14])
def test_eces_of_a_thousand_sets_follow_their_definition(sets, bins):
    for probs, gold in sets:
        confidence, predicted = probs.max(axis=1), probs.argmax(axis=1)
        assert calibration.conf_ece(probs, gold, bins) == pytest.approx(
            binned_error(confidence, predicted == gold, bins), abs=1e-12
        )
        letters = [binned_error(probs[:, j], gold == j, bins) for j in range(probs.shape[1])]
        assert calibration.cw_ece(probs, gold, bins) == pytest.approx(np.mean(letters), abs=1e-12)


def test_conf_ece_and_accuracy_of_a_thousand_sets_equal_torchmetrics(sets):
    for probs, gold in sets:
        # It puts confidence 1 into a bin of its own, and compares in float32, where .3 lies elsewhere.
        inner = (probs.max(axis=1) < 1) & (np.abs(probs.max(axis=1)[:, None] - np.arange(11) / 10).min(axis=1) > 1e-6)
        tensors = torch.tensor(probs), torch.tensor(gold)
        letters = probs.shape[1]
        theirs = multiclass_accuracy(*tensors, letters, average="micro")
        assert calibration.accuracy(probs, gold) == pytest.approx(float(theirs), abs=1e-6)
        if inner.any():
            theirs = multiclass_calibration_error(*(each[inner] for each in tensors), letters, 10)
            assert calibration.conf_ece(probs[inner], gold[inner]) == pytest.approx(float(theirs), abs=1e-6)


def test_nll_and_brier_of_a_thousand_sets_equal_scikit_learn(sets):
    # It takes milliseconds a call, so it gets all sets with as many letters at once, whose mean is that of the sets'.
    for letters in range(2, 7):
        alike = [(probs, gold) for probs, gold in sets if probs.shape[1] == letters]
        rows = [len(gold) for _, gold in alike]
        probs, gold = (np.concatenate(arrays) for arrays in zip(*alike, strict=True))
        theirs = sklearn.metrics.brier_score_loss(gold, probs, labels=range(letters), scale_by_half=False)
        ours = [calibration.brier(*each) for each in alike]
        assert np.average(ours, weights=rows) == pytest.approx(theirs, abs=1e-12)
        # It clips a probability of 0, where ours is infinite.
        positive = np.maximum(probs, 1e-12)
        positive /= positive.sum(axis=1, keepdims=True)
        theirs = sklearn.metrics.log_loss(gold, positive, labels=range(letters))
        logs = np.split(np.log(positive), np.cumsum(rows)[:-1])
        ours = [calibration.nll(log_probs, gold) for log_probs, (_, gold) in zip(logs, alike, strict=True)]
        assert np.average(ours, weights=rows) == pytest.approx(theirs, abs=1e-12)
