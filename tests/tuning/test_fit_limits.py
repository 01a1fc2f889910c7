import pytest
import torch
from architectures import save_architecture
from fitting import small_fit, small_recipe
from tiny import save_tiny

from calibtune.errors import UserError, WorkFailed
from calibtune.tuning.inputs import read_inputs
from calibtune.tuning.trainer import CalibrationTrainer

pytestmark = pytest.mark.usefixtures("mirror")


def test_4_bit_base_trains_on_cpu(model, tmp_path):
    import bitsandbytes

    assert bitsandbytes.__version__
    wide = save_tiny(tmp_path / "wide", hidden=64)
    artifact = small_fit(wide, tmp_path / "out", "rcft", quantization="nf4", epochs=2)
    plain = small_fit(wide, tmp_path / "plain", "rcft", epochs=2)
    assert artifact.recipe["quantization"] == "nf4"
    # The quantized base is a different model.
    assert artifact.before["nll"] != pytest.approx(plain.before["nll"], abs=1e-4)
    assert artifact.after["nll"] != pytest.approx(artifact.before["nll"], abs=1e-4)


def test_scoring_before_training_keeps_4_bit_gradients(tmp_path):
    from calibtune.data.tokens import collate
    from calibtune.models.loading import load_base
    from calibtune.models.scores import score
    from calibtune.tuning.losses import method_loss
    from calibtune.tuning.trainable import add_adapter

    recipe = small_recipe(save_tiny(tmp_path / "wide", hidden=64), "cft", quantization="nf4")
    questions = read_inputs(recipe).held_out
    found = []
    for scored_first in (False, True):
        base = load_base(recipe.spec)
        if scored_first:
            score(base, questions, 1, 4)
        torch.manual_seed(0)
        tuned = add_adapter(base, recipe).train()
        # While B is zero, A has no gradient.
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        method_loss(tuned, collate(questions, 1), recipe)[0].backward()
        found.append({name: p.grad for name, p in tuned.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-6), name
    assert max(float(gradient.abs().max()) for gradient in found[0].values()) > 0.01


#: torch's own error, and CUDA's where other processes leave no room for this one's context.
FULL = [torch.OutOfMemoryError(), torch.AcceleratorError("CUDA error: out of memory")]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_out_of_memory_suggests_a_smaller_batch(model, tmp_path, monkeypatch, error):
    def full(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", full)
    with pytest.raises(WorkFailed, match=r"--batch-size 2 --gradient-accumulation 2 .*--auto-batch"):
        small_fit(model, tmp_path / "out", "cft")


def test_out_of_memory_under_fsdp_suggests_nothing_that_fsdp_refuses(monkeypatch):
    from calibtune.tuning.fit import _memory_advice

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "--auto-batch" not in _memory_advice(small_recipe("M", "cft"))


@pytest.mark.parametrize("save_every", [0, 1])
def test_full_disk_leaves_no_manifest_and_no_finished_checkpoint(model, tmp_path, monkeypatch, save_every):
    from safetensors import SafetensorError

    from calibtune.tuning import trainer

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(trainer.CalibrationTrainer, "_save", full)
    with pytest.raises(WorkFailed, match=r"no space is left on the disk of .* with --resume"):
        small_fit(model, tmp_path / "out", "cft", save_every=save_every)
    assert not list((tmp_path / "out").rglob("whole.json"))
    assert not (tmp_path / "out" / "calibtune.json").exists()


def test_model_with_unsupported_cache_is_scored_and_trained(tmp_path):
    base = save_architecture("LFM2", tmp_path / "base")
    tuned = small_fit(base, tmp_path / "tuned", "rcft", max_steps=1)
    scaled = small_fit(base, tmp_path / "t", "temperature")
    assert tuned.before["nll"] == pytest.approx(scaled.before["nll"], abs=1e-6)


def test_target_modules_that_cannot_take_an_adapter_are_refused(tmp_path):
    base = save_architecture("Mamba", tmp_path / "base")
    with pytest.raises(UserError, match=r"no adapter can be added to out_proj of .* or --tuning full"):
        small_fit(base, tmp_path / "out", "cft", target_modules="out_proj")
    artifact = small_fit(base, tmp_path / "full", "cft", tuning="full", learning_rate=1e-3)
    assert artifact.kind == "model"
