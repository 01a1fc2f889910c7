import json
import shutil

import numpy as np
import pytest
import torch
from fitting import METHODS, adapter_weights, same_weights, small_fit, small_recipe
from harness import enter_mirror
from tiny import save_tiny, write_arc_mirror

from calibtune.artefact import MANIFEST, read_artefact
from calibtune.errors import UserError, WorkFailed
from calibtune.fit import CHECKPOINTS, STARTED, fit, read_inputs
from calibtune.trainer import WHOLE, CalibrationTrainer, last_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def mirror(tmp_path, monkeypatch):
    return enter_mirror(write_arc_mirror(tmp_path / "hub"), monkeypatch)


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_moves_and_the_base_does_not(model, tmp_path, method, monkeypatch):
    trainers = []
    train = CalibrationTrainer.train
    monkeypatch.setattr(CalibrationTrainer, "train", lambda self, **k: trainers.append(self) or train(self, **k))
    small_fit(model, tmp_path / "out", method, max_steps=1, warmup_ratio=0)
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model).state_dict()
    tuned = trainers[0].model.get_base_model().state_dict()
    for name, value in base.items():
        own = tuned.get(name, tuned.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(own, value), name
    # B starts at zero, so any value other than zero moved.
    moved = {name for name, value in adapter_weights(tmp_path / "out").items() if "lora_B" in name and value.any()}
    assert len(moved) == 2 * 7  # layers times linear layers
    assert {parameter.dtype for parameter in trainers[0].model.parameters() if parameter.requires_grad} == {
        torch.float32
    }


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_parts_train_like_one_batch(model, tmp_path, method):
    whole = small_fit(model, tmp_path / "whole", method, batch_size=4)
    small_fit(model, tmp_path / "parts", method, batch_size=1, gradient_accumulation=4)
    assert same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=1e-5)
    assert whole.after["nll"] != pytest.approx(whole.before["nll"], abs=1e-4)


def test_seeds_give_other_adapters_and_one_seed_the_same(model, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small_fit(model, tmp_path / name, "cft", seed=seed, lora_dropout=0.05)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c", atol=1e-6)


def test_training_and_held_out_questions_are_apart_and_neither_is_evaluated(model):
    inputs = read_inputs(small_recipe(model, "cft"))
    train, held_out = (
        {example.doc_hash for example in part} for part in (inputs.examples.train, inputs.examples.held_out)
    )
    assert len(train) == 18
    assert len(held_out) == 6
    task = inputs.examples.train[0].prompts.task
    evaluated = {inputs.examples.train[0].prompts.hash(doc) for doc in task.eval_docs}
    assert not train & held_out
    assert not (train | held_out) & evaluated


@pytest.mark.parametrize("method", METHODS)
def test_every_method_sees_the_same_questions_in_the_same_order_at_a_seed(model, tmp_path, method, monkeypatch):
    seen = []
    loss = CalibrationTrainer.compute_loss
    monkeypatch.setattr(
        CalibrationTrainer, "compute_loss",
        lambda self, m, inputs, **k: seen.append(inputs["input_ids"].tolist()) or loss(self, m, inputs, **k),
    )  # fmt: skip
    for name in (method, "cft"):
        small_fit(model, tmp_path / f"{name}-again", name, epochs=2, overwrite=True)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert len(seen) == 2 * 2 * 4


def test_options_are_shown_in_other_orders_in_each_epoch_with_the_right_one_followed(model):
    from calibtune.dataset import TrainingSet

    inputs = read_inputs(small_recipe(model, "cft"))
    data = TrainingSet(inputs.examples.train, inputs.encoder, inputs.max_length, 0, shuffle_options=True)
    orders = []
    for epoch in range(2):
        data.set_epoch(epoch)
        orders.append([(row.input_ids, row.gold) for row in data.rows])
        for example, row in zip(inputs.examples.train, data.rows, strict=True):
            text = inputs.tokenizer.decode(row.input_ids)
            right = example.doc["choices"][example.gold]
            assert f"{'ABCDE'[row.gold]}. {right}\n" in text
    assert orders[0] != orders[1]
    data = TrainingSet(inputs.examples.train, inputs.encoder, inputs.max_length, 0, shuffle_options=False)
    assert [row.gold for row in data.rows] == [example.gold for example in inputs.examples.train]


def stop_after(monkeypatch, steps):
    """Makes training end with an error after some steps, as a kill would."""
    original = CalibrationTrainer.compute_loss
    done = []

    def dies(self, *args, **kwargs):
        done.append(1)
        if len(done) > steps:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", dies)


@pytest.mark.parametrize(("method", "changes"), [
    ("cft", {}), ("rcft", {}), ("rcft", {"e_step": "running"}), ("rcft", {"e_step": "once"}),
    ("rcft", {"e_step_rows": "train", "gradient_accumulation": 2, "batch_size": 2}),
])  # fmt: skip
def test_a_stopped_fit_resumes_to_the_same_adapter_bit_for_bit(model, tmp_path, method, changes, monkeypatch):
    options = {"epochs": 2, "save_every": 1, "lora_dropout": 0.05, **changes}
    small_fit(model, tmp_path / "whole", method, **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 11 if "gradient_accumulation" in changes else 6)
        with pytest.raises(KeyboardInterrupt):
            small_fit(model, tmp_path / "cut", method, **options)
    assert last_checkpoint(tmp_path / "cut" / CHECKPOINTS) is not None
    small_fit(model, tmp_path / "cut", method, resume=True, **options)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "cut" / CHECKPOINTS).exists()


def test_a_checkpoint_cut_off_in_the_middle_is_passed_over(tmp_path):
    for step, whole in ((2, True), (4, True), (6, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / WHOLE).write_text("{}")
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    assert last_checkpoint(tmp_path / "none") is None


def test_resuming_with_another_recipe_is_refused_with_what_differs(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            small_fit(model, tmp_path / "out", "cft")
    assert (tmp_path / "out" / STARTED).is_file()
    with pytest.raises(UserError, match=r"learning_rate 0\.01 -> 0\.001"):
        small_fit(model, tmp_path / "out", "cft", resume=True, learning_rate=1e-3)


def test_resuming_a_finished_fit_changes_nothing(model, tmp_path):
    first = small_fit(model, tmp_path / "out", "cft", max_steps=1)
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    assert small_fit(model, tmp_path / "out", "cft", max_steps=1, resume=True) == first
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before


def test_a_loss_that_is_not_finite_stops_with_step_rows_and_checkpoint(model, tmp_path, monkeypatch):
    original = CalibrationTrainer.compute_loss

    def explodes(self, m, inputs, **kwargs):
        loss = original(self, m, inputs, **kwargs)
        return loss * torch.nan if self.state.global_step == 2 else loss

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", explodes)
    with pytest.raises(WorkFailed, match=r"step 3: the loss is .*training questions \[\d+.*checkpoint-2: lower"):
        small_fit(model, tmp_path / "out", "cft", save_every=1)


def test_a_gradient_that_is_not_finite_stops_before_the_step(model, tmp_path, monkeypatch):
    from calibtune import trainer

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


def test_full_fine_tuning_leaves_an_ordinary_model(model, tmp_path):
    artefact = small_fit(model, tmp_path / "out", "cft", tuning="full", learning_rate=1e-3)
    from transformers import AutoModelForCausalLM

    base, tuned = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (model, tmp_path / "out"))
    assert artefact.kind == "model"
    assert all(not torch.equal(base[name], tuned[name]) for name in base if "proj" in name)


def test_four_bit_bases_train_on_the_cpu(model, tmp_path):
    import bitsandbytes

    assert bitsandbytes.__version__
    wide = save_tiny(tmp_path / "wide", hidden=64)
    artefact = small_fit(wide, tmp_path / "out", "rcft", quantisation="nf4", epochs=2)
    plain = small_fit(wide, tmp_path / "plain", "rcft", epochs=2)
    assert artefact.recipe["quantisation"] == "nf4"
    # The rounded base is another model.
    assert artefact.before["nll"] != pytest.approx(plain.before["nll"], abs=1e-4)
    assert artefact.after["nll"] != pytest.approx(artefact.before["nll"], abs=1e-4)


def test_scoring_before_training_leaves_four_bit_gradients_as_they_were(tmp_path):
    from calibtune.estep import score
    from calibtune.losses import method_loss
    from calibtune.modeling import add_adapter, load_base
    from calibtune.tokens import collate

    recipe = small_recipe(save_tiny(tmp_path / "wide", hidden=64), "cft", quantisation="nf4")
    questions = read_inputs(recipe).held_out
    found = []
    for scored_first in (False, True):
        base = load_base(recipe)
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
    from calibtune.modeling import add_adapter, load_base

    recipe = small_recipe(model, "cft", precision="bf16")
    base = load_base(recipe)
    frequencies = base.model.rotary_emb.inv_freq
    tuned = add_adapter(base, recipe)
    assert frequencies.dtype == torch.float32
    assert frequencies[1].item() == pytest.approx(10000 ** (-2 / 8), rel=1e-6)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in tuned.parameters() if not p.requires_grad} == {torch.bfloat16}
    artefact = small_fit(model, tmp_path / "out", "cft", precision="bf16", max_steps=1)
    assert np.isfinite(artefact.after["nll"])


def test_auto_batch_splits_the_step_until_it_fits(model, tmp_path, monkeypatch, capsys):
    from calibtune import batch

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


def test_out_of_memory_says_which_batch_size_to_try(model, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", full)
    with pytest.raises(WorkFailed, match=r"--batch-size 2 --gradient-accumulation 2 .*--auto-batch"):
        small_fit(model, tmp_path / "out", "cft")


def test_the_manifest_is_written_last(model, tmp_path, monkeypatch):
    from calibtune.artefact import Artefact

    monkeypatch.setattr(Artefact, "write", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        small_fit(model, tmp_path / "out", "cft", max_steps=1)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    with pytest.raises(UserError, match="no finished artefact"):
        read_artefact(tmp_path / "out")


def test_an_existing_output_is_kept_unless_told_otherwise(model, tmp_path):
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    with pytest.raises(UserError, match="holds files already"):
        small_fit(model, tmp_path / "out", "cft", max_steps=1)
    small_fit(model, tmp_path / "out", "label-smoothing", max_steps=1, overwrite=True)
    assert read_artefact(tmp_path / "out").method == "label-smoothing"


def test_manifest_and_card_hold_recipe_hashes_versions_and_numbers(model, tmp_path):
    import yaml

    artefact = small_fit(model, tmp_path / "out", "rcft")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["recipe"]["lambda_"] == 1.0
    assert len(manifest["documents"]["train"]) == 18
    assert manifest["versions"]["torch"] == torch.__version__
    card = (tmp_path / "out" / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    metrics = {m["type"]: m for m in data["model-index"][0]["results"][0]["metrics"]}
    assert metrics["conf_ece_10"]["value"] == pytest.approx(artefact.after["conf_ece_10"], abs=1e-6)
    assert metrics["conf_ece_10"]["args"]["interval_95_high"] == pytest.approx(
        artefact.after["conf_ece_10_high"], abs=1e-6
    )
    assert f"| NLL (nats) | {artefact.before['nll']:.4f} | {artefact.after['nll']:.4f} |" in card
    assert "peft=THIS_FOLDER" in card


def test_the_temperature_of_an_adapter_is_fitted_on_rows_that_it_was_not_trained_on(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", held_out=3)
    artefact = small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), held_out=6)
    trained = set(read_artefact(tmp_path / "adapter").documents["train"])
    assert not trained & set(artefact.documents["held_out"])
    assert set(artefact.documents["train"]) == trained
    assert artefact.after["acc"] == artefact.before["acc"]
    assert artefact.after["nll"] <= artefact.before["nll"] + 1e-9


def test_a_temperature_needs_questions_that_the_adapter_has_not_seen(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", held_out=0)
    with pytest.raises(UserError, match="no question of mc_calib_arc is left to fit T on"):
        small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))


def test_a_full_disk_is_one_sentence(model, tmp_path, monkeypatch):
    import errno

    from calibtune import files

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(WorkFailed, match="no space is left to write"):
        small_fit(model, tmp_path / "out", "cft")


def test_an_adapter_for_another_base_is_refused(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    other = save_tiny(tmp_path / "other", hidden=48)
    with pytest.raises(UserError, match="does not fit this model; it was made for"):
        small_fit(other, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "t", ignore_errors=True)
    with pytest.raises(UserError, match="no finished artefact"):
        fit(small_recipe(other, "temperature", artifact=str(tmp_path)), tmp_path / "t")
