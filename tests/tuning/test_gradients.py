"""Gradients that are averaged over processes; test_fit_processes.py has two real ones."""

import pytest
import torch

from calibtune.tuning.gradients import average_gradients, listed_once, share_weights


def test_gradients_are_means_one_that_a_process_lacks_is_0_and_one_that_all_lack_stays_away(monkeypatch):
    weights = [torch.nn.Parameter(torch.zeros(*shape)) for shape in ((2,), (1, 3), (1,), (1,))]
    weights[0].grad = torch.tensor([1.0, 2.0])
    weights[3].requires_grad_(False)
    # The other process has gradients of the first two: [3, -2], [[4, 0, 1]] and none of the third.
    others = torch.tensor([3.0, -2.0, 4.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    monkeypatch.setattr("torch.distributed.all_reduce", lambda mine: mine.add_(others))
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    average_gradients(weights)
    assert weights[0].grad.tolist() == [2.0, 0.0]
    assert weights[1].grad.tolist() == [[2.0, 0.0, 0.5]]
    assert weights[2].grad is None
    assert weights[3].grad is None


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_averaging_does_not_wait_for_the_gpu(monkeypatch):
    weights = [torch.nn.Parameter(torch.zeros(2, device="cuda")) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "nccl")
    monkeypatch.setattr("torch.distributed.all_reduce", lambda mine, op: mine.mul_(1.5))
    torch.cuda.set_sync_debug_mode("error")
    try:
        average_gradients(weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [weight.grad.tolist() for weight in weights] == [[1.5, 1.5]] * 3


def test_every_process_begins_with_the_first_ones_trained_weights(monkeypatch):
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3), requires_grad=False)]
    monkeypatch.setattr("torch.distributed.broadcast", lambda mine, src: mine.fill_(7 + src))
    share_weights(weights)
    assert [weight.tolist() for weight in weights] == [[7.0, 7.0], [0.0, 0.0, 0.0]]


def test_trained_weights_are_listed_without_a_visit_to_the_modules():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(False)
    every = list(model.parameters())
    visits = []
    model.named_modules = lambda *args, **options: visits.append(args) or iter([])
    with listed_once(model, active=False):
        assert list(model.parameters()) == []
    del model.named_modules
    with listed_once(model):
        model.named_modules = lambda *args, **options: visits.append(args) or iter([])
        for _ in range(2):  # each call begins anew
            assert list(map(id, model.parameters())) == list(map(id, every[2:]))
        model[1].weight.grad = torch.ones(1, 2)
        model.zero_grad()
        assert model[1].weight.grad is None
    del model.named_modules
    assert len(visits) == 1
    assert list(map(id, model.parameters())) == list(map(id, every))
