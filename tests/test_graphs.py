"""CUDA graphs against the same fits without them."""

import pytest
import torch
from fitting import small_fit, small_recipe

from calibtune import trainer
from calibtune.errors import UserError
from calibtune.fit import read_inputs
from calibtune.trainer import CalibrationTrainer

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.accelerator
@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["label-smoothing", "cft", "rcft"])
def test_a_graph_gives_the_losses_and_gradients_of_the_plain_pass(
    model, tmp_path, mirror, method, precision, monkeypatch
):
    monkeypatch.setattr(trainer, "BUCKET", 4)  # several shapes
    seen = []
    norm = CalibrationTrainer._get_grad_norm

    def noted(self, *args, **options):
        seen.append((float(sum(self._losses)), float(norm(self, *args, **options))))
        return torch.tensor(seen[-1][1])

    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", noted)
    options = {"device": "cuda", "precision": precision, "epochs": 2, "batch_size": 2, "gradient_accumulation": 2}
    small_fit(model, tmp_path / "plain", method, **options)
    plain = list(seen)
    small_fit(model, tmp_path / "graphs", method, cuda_graphs=True, **options)
    tolerance = 1e-4 if precision == "fp32" else 0.05
    assert torch.allclose(torch.tensor(seen[len(plain) :]), torch.tensor(plain), rtol=tolerance)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is no GPU")
def test_graphs_without_a_gpu_are_refused_before_anything_is_read(model):
    with pytest.raises(UserError, match="--cuda-graphs needs one process on an NVIDIA or AMD GPU; leave it out"):
        read_inputs(small_recipe(model, "cft", cuda_graphs=True))


@pytest.mark.parametrize("other", [{"e_step": "running"}, {"gradient_checkpointing": True}, {"compile": True}])
def test_graphs_with_what_cannot_be_recorded_are_refused(model, other):
    with pytest.raises(UserError, match="needs --e-step epoch, and neither --gradient-checkpointing nor --compile"):
        small_recipe(model, "rcft", cuda_graphs=True, **other)
