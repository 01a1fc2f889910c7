from types import SimpleNamespace

import pytest
import torch
from fitting import adapter_weights, same_weights, small_fit, small_recipe

from calibtune.errors import WorkFailed

pytestmark = pytest.mark.usefixtures("mirror")


def test_auto_batch_reduces_the_batch_until_it_fits(model, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="calibtune")
    from calibtune.tuning import memory as batch

    original = batch.method_loss

    def small_memory(m, inputs, *args):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError
        return original(m, inputs, *args)

    monkeypatch.setattr(batch, "method_loss", small_memory)
    small_fit(model, tmp_path / "auto", "cft", batch_size=6, auto_batch=True)
    assert "2 questions in a forward pass, 3 accumulated" in caplog.text
    small_fit(model, tmp_path / "plain", "cft", batch_size=6)
    assert same_weights(tmp_path / "auto", tmp_path / "plain", rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("sharded", "tried"), [(False, [(3, 25), (1, 40), (1, 40)]), (True, [(4, 40), (2, 40), (1, 40)])]
)
def test_auto_batch_tries_the_batch_with_most_tokens(model, monkeypatch, sharded, tried):
    from calibtune.data.tokens import TokenExample
    from calibtune.data.training_set import Questions
    from calibtune.tuning import memory as batch

    shapes = []

    def out_of_memory(m, inputs, recipe):
        shapes.append(tuple(inputs["input_ids"].shape))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(batch, "method_loss", out_of_memory)
    monkeypatch.setattr(batch, "is_sharded", lambda: sharded)
    rows = [TokenExample((1,) * length, (60, 61), 0, 0) for length in (5, 25, 40, *[5] * 9)]
    questions = Questions(SimpleNamespace(rows=rows), (), 0)
    with pytest.raises(WorkFailed, match="not even one question of 40 tokens"):
        batch.fitting(torch.nn.Linear(1, 1), questions, small_recipe(model, "cft"), 1)
    assert shapes == tried


def test_auto_batch_reserves_memory_for_gradients_and_optimizer(model, tmp_path, monkeypatch):
    from calibtune.tuning import memory as batch

    reserved, empty_like, fitting = [], torch.empty_like, batch.fitting

    def recorded(*args):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", lambda weight: reserved.append(weight.numel()) or empty_like(weight))
            return fitting(*args)

    monkeypatch.setattr(batch, "fitting", recorded)
    small_fit(model, tmp_path / "auto", "cft", auto_batch=True, max_steps=1)
    weights = sum(tensor.numel() for tensor in adapter_weights(tmp_path / "auto").values())
    assert sum(reserved) == 3 * weights  # AdamW's two moments and the gradients
