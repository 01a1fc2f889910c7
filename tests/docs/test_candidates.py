"""The losses and targets of tests/benchmarks/candidates.py are what its table says."""

import math
from types import SimpleNamespace

import candidates
import numpy as np
import pytest
import torch

#: Two questions of three and two letters; the rest of the probability is on other tokens.
LIKELIHOODS = [[0.5, 0.2, 0.1], [0.3, 0.6, 0.0]]
GOLD = torch.tensor([0, 0])


@pytest.fixture
def letters():
    return torch.tensor(LIKELIHOODS).log().requires_grad_()


def values(loss):
    return pytest.approx(loss, abs=1e-6)


def test_brier_is_that_of_the_letters_softmax(letters):
    first = (1 - 5 / 8) ** 2 + (2 / 8) ** 2 + (1 / 8) ** 2
    expected = [-math.log(0.5) + first, -math.log(0.3) + 2 * (2 / 3) ** 2]
    assert candidates.brier_loss(letters, GOLD).tolist() == values(expected)


def test_focal_loss_weighs_down_what_is_likely(letters):
    expected = [-math.log(p) * (1 - p) ** 2 for p in (0.5, 0.3)]
    assert candidates.focal_loss(letters, GOLD).tolist() == values(expected)


def test_mmce_of_a_right_and_a_wrong_answer(letters):
    # Confidences 5/8, right, and 2/3, wrong.
    kernel = math.exp(-(2 / 3 - 5 / 8) / 0.4)
    square = (3 / 8) ** 2 + (2 / 3) ** 2 - 2 * (3 / 8) * (2 / 3) * kernel
    expected = [-math.log(p) + 2 * math.sqrt(square) for p in (0.5, 0.3)]
    assert candidates.mmce_loss(letters, GOLD).tolist() == values(expected)


def test_mmce_is_nothing_where_all_answers_are_right(letters):
    right = torch.tensor([0, 1])
    assert candidates.mmce_loss(letters, right).tolist() == values([-math.log(0.5), -math.log(0.6)])


def test_cross_entropy_towards_targets(letters):
    target = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.6, 0.0]])
    expected = [
        -sum(t * math.log(p) for t, p in zip(*pair, strict=True) if p)
        for pair in zip(target.tolist(), LIKELIHOODS, strict=True)
    ]
    assert candidates.cross_entropy(letters, target).tolist() == values(expected)


@pytest.mark.parametrize("loss", [candidates.brier_loss, candidates.focal_loss, candidates.mmce_loss])
def test_an_absent_letter_leaves_gradients_finite(letters, loss):
    loss(letters, GOLD).sum().backward()
    assert letters.grad.isfinite().all()
    assert letters.grad[:, 0].ne(0).all()


def test_kl_is_the_mean_over_the_questions_tokens_before_the_last():
    states = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]], [[2.0, 0.0], [9.0, 0.0], [9.0, 0.0]]])
    before = torch.zeros_like(states)
    found = candidates.question_kl(before, states, torch.nn.Identity(), torch.tensor([2, 1]))

    def divergence(logit):
        return math.log1p(math.exp(logit)) - logit / 2 - math.log(2)  # of two equal shares from a softmax of (logit, 0)

    assert found.tolist() == values([(divergence(0) + divergence(1)) / 2, divergence(2)])


def test_accuracy_of_equal_mass_bins_and_of_isotonic_regression():
    counted = np.array([0.3, 0.4, 0.6, 0.9]), np.array([0.0, 1.0, 0.0, 1.0])
    step = SimpleNamespace(counted=counted, recipe=SimpleNamespace(bins=2))
    asked = np.array([0.1, 0.45, 0.55, 1.0])
    assert candidates.EqualMass.accuracy(step, asked).tolist() == [0.5, 0.5, 0.5, 0.5]
    step.counted = counted[0], np.array([0.0, 1.0, 1.0, 1.0])
    assert candidates.EqualMass.accuracy(step, asked).tolist() == [0.5, 0.5, 1.0, 1.0]
    step.counted = counted
    assert candidates.Isotonic.accuracy(step, np.array([0.1, 0.5, 1.0])).tolist() == [0.0, 0.5, 1.0]


def test_options_go_to_their_own_order_and_back():
    examples = [SimpleNamespace(doc_hash=str(i), letters=("A", "B", "C", "D")[: 4 - i % 2]) for i in range(6)]
    train = SimpleNamespace(seed=3, epoch=1, examples=examples)
    own = np.arange(1.0, 25.0).reshape(6, 4) * (np.arange(4) < np.array([[len(e.letters)] for e in examples]))
    shown = candidates.in_present_order(train, own)
    assert (shown != own).any()
    order = candidates.option_order(3, 1, "0", 4)
    assert shown[0].tolist() == [own[0, old] for old in order]
    np.testing.assert_array_equal(candidates.in_own_order(train, shown, 1), own)
