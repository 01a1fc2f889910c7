from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fitting import adapter_weights, other_architecture, same_weights, small_fit, small_recipe
from tiny import save_tiny

from calibtune.errors import UserError, WorkFailed
from calibtune.tuning.inputs import read_inputs
from calibtune.tuning.trainer import CalibrationTrainer

pytestmark = pytest.mark.usefixtures("mirror")


def test_a_loss_that_is_not_finite_stops_with_step_rows_and_checkpoint(model, tmp_path, monkeypatch):
    original = CalibrationTrainer.compute_loss

    def explodes(self, m, inputs, **kwargs):
        loss = original(self, m, inputs, **kwargs)
        return loss * torch.nan if self.state.global_step == 2 else loss

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", explodes)
    with pytest.raises(WorkFailed, match=r"step 3: the loss is .*training questions \[\d+.*checkpoint-2: lower"):
        small_fit(model, tmp_path / "out", "cft", save_every=1)


def test_a_gradient_that_is_not_finite_stops_before_the_step(model, tmp_path, monkeypatch):
    from calibtune.tuning import trainer

    original = trainer.method_loss

    def spoiled(*args, **kwargs):
        loss, letters = original(*args, **kwargs)
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss, letters

    monkeypatch.setattr(trainer, "method_loss", spoiled)
    with pytest.raises(WorkFailed, match=r"step 1: .* the gradient norm (inf|nan)"):
        small_fit(model, tmp_path / "out", "cft")


def test_too_few_questions_for_a_step_is_said(model, tmp_path):
    with pytest.raises(UserError, match=r"a step takes 64 questions .* only 18"):
        small_fit(model, tmp_path / "out", "cft", batch_size=64)


def test_four_bit_bases_train_on_the_cpu(model, tmp_path):
    import bitsandbytes

    assert bitsandbytes.__version__
    wide = save_tiny(tmp_path / "wide", hidden=64)
    artifact = small_fit(wide, tmp_path / "out", "rcft", quantization="nf4", epochs=2)
    plain = small_fit(wide, tmp_path / "plain", "rcft", epochs=2)
    assert artifact.recipe["quantization"] == "nf4"
    # The rounded base is another model.
    assert artifact.before["nll"] != pytest.approx(plain.before["nll"], abs=1e-4)
    assert artifact.after["nll"] != pytest.approx(artifact.before["nll"], abs=1e-4)


def test_scoring_before_training_leaves_four_bit_gradients_as_they_were(tmp_path):
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
        # With B at zero the adapters below would have no gradient to lose.
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        method_loss(tuned, collate(questions, 1), recipe)[0].backward()
        found.append({name: p.grad for name, p in tuned.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-6), name
    assert max(float(gradient.abs().max()) for gradient in found[0].values()) > 0.01


def test_bf16_keeps_adapter_weights_in_float32_and_rotary_frequencies_exact(model, tmp_path):
    from calibtune.models.loading import load_base
    from calibtune.tuning.trainable import add_adapter

    recipe = small_recipe(model, "cft", precision="bf16")
    base = load_base(recipe.spec)
    frequencies = base.model.rotary_emb.inv_freq
    tuned = add_adapter(base, recipe)
    assert frequencies.dtype == torch.float32
    assert frequencies[1].item() == pytest.approx(10000 ** (-2 / 8), rel=1e-6)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in tuned.parameters() if not p.requires_grad} == {torch.bfloat16}
    artifact = small_fit(model, tmp_path / "out", "cft", precision="bf16", max_steps=1)
    assert np.isfinite(artifact.after["nll"])


def test_auto_batch_splits_the_step_until_it_fits(model, tmp_path, monkeypatch, capsys):
    from calibtune.tuning import memory as batch

    original = batch.method_loss

    def small_memory(m, inputs, *args):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError
        return original(m, inputs, *args)

    monkeypatch.setattr(batch, "method_loss", small_memory)
    small_fit(model, tmp_path / "auto", "cft", batch_size=6, auto_batch=True)
    assert "2 questions in a forward pass, 3 accumulated" in capsys.readouterr().out
    small_fit(model, tmp_path / "plain", "cft", batch_size=6)
    assert same_weights(tmp_path / "auto", tmp_path / "plain", rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("sharded", "tried"), [(False, [(3, 25), (1, 40), (1, 40)]), (True, [(4, 40), (2, 40), (1, 40)])]
)
def test_auto_batch_tries_the_part_of_a_step_with_most_tokens(model, monkeypatch, sharded, tried):
    from calibtune.data.tokens import TokenExample
    from calibtune.data.training_set import Questions
    from calibtune.tuning import memory as batch

    shapes = []
    monkeypatch.setattr(batch, "_fits", lambda m, inputs, recipe: shapes.append(tuple(inputs["input_ids"].shape)))
    monkeypatch.setattr(batch, "is_sharded", lambda: sharded)
    rows = [TokenExample((1,) * length, (60, 61), 0, 0) for length in (5, 25, 40, *[5] * 9)]
    with pytest.raises(WorkFailed, match="not even one question of 40 tokens"):
        batch.fitting(None, Questions(SimpleNamespace(rows=rows), (), 0), small_recipe(model, "cft"), 1)
    assert shapes == tried


def test_auto_batch_leaves_room_for_what_a_step_finds_taken(model, tmp_path, monkeypatch):
    from calibtune.tuning import memory as batch

    taken, empty_like, fits = [], torch.empty_like, batch._fits

    def tried(*args):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", lambda weight: taken.append(weight.numel()) or empty_like(weight))
            return fits(*args)

    monkeypatch.setattr(batch, "_fits", tried)
    small_fit(model, tmp_path / "auto", "cft", auto_batch=True, max_steps=1)
    weights = sum(tensor.numel() for tensor in adapter_weights(tmp_path / "auto").values())
    assert sum(taken) == 3 * weights  # AdamW's two moments and the gradients


#: torch's own, and what CUDA says where other processes leave no room for this one's context.
FULL = [torch.OutOfMemoryError(), torch.AcceleratorError("CUDA error: out of memory")]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_out_of_memory_says_which_batch_size_to_try(model, tmp_path, monkeypatch, error):
    def full(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", full)
    with pytest.raises(WorkFailed, match=r"--batch-size 2 --gradient-accumulation 2 .*--auto-batch"):
        small_fit(model, tmp_path / "out", "cft")


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_full_disk_is_one_sentence_and_nothing_claims_to_be_whole(model, tmp_path, monkeypatch, save_every):
    from safetensors import SafetensorError

    from calibtune.tuning import trainer

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(trainer.CalibrationTrainer, "_save", full)
    with pytest.raises(WorkFailed, match=r"no space is left on the disk of .* with --resume"):
        small_fit(model, tmp_path / "out", "cft", save_every=save_every)
    assert not list((tmp_path / "out").rglob("whole.json"))
    assert not (tmp_path / "out" / "calibtune.json").exists()


def test_a_model_whose_cache_cannot_be_repeated_is_scored_and_trained(tmp_path):
    base = other_architecture("Lfm2", tmp_path / "base")
    tuned = small_fit(base, tmp_path / "tuned", "rcft", max_steps=1)
    scaled = small_fit(base, tmp_path / "t", "temperature")
    assert tuned.before["nll"] == pytest.approx(scaled.before["nll"], abs=1e-6)


@pytest.mark.parametrize("name", ["Qwen2", "Mistral", "Gemma2", "Olmo2", "GPT2"])
def test_other_architectures_are_trained_and_served(tmp_path, name):
    from calibtune.artifacts.bake import bake
    from calibtune.artifacts.merge import merge

    base = other_architecture(name, tmp_path / "base")
    artifact = small_fit(base, tmp_path / "adapter", "rcft", epochs=2)
    assert abs(artifact.after["nll"] - artifact.before["nll"]) > 1e-3
    small_fit(base, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
    merge(tmp_path / "adapter", tmp_path / "merged", dequantized=False, overwrite=False)
    bake(tmp_path / "t", tmp_path / "baked", overwrite=False)
    assert (tmp_path / "baked" / "model.safetensors").is_file()


def test_an_architecture_that_takes_no_adapter_is_refused_and_can_be_tuned_in_full(tmp_path):
    base = other_architecture("Mamba", tmp_path / "base")
    with pytest.raises(UserError, match=r"no adapter can be added to all-linear of .* or --tuning full"):
        small_fit(base, tmp_path / "out", "cft")
    artifact = small_fit(base, tmp_path / "full", "cft", tuning="full", learning_rate=1e-3)
    assert artifact.kind == "model"
