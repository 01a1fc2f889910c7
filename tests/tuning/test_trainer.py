"""Train steps: accumulation, devices, precision, order of the questions, Trainer's arguments."""

import pytest
import torch
from fitting import METHODS, same_weights, small_fit, small_recipe
from peft.tuners.tuners_utils import BaseTunerLayer

from calibtune.errors import UserError, WorkFailed
from calibtune.tuning import trainer
from calibtune.tuning.trainer import CalibrationTrainer, training_arguments

pytestmark = pytest.mark.usefixtures("mirror")


@pytest.mark.parametrize(
    "method", [pytest.param(each, marks=[pytest.mark.slow] * (each != "rcft")) for each in METHODS]
)
def test_gradient_accumulation_matches_one_batch(model, tmp_path, method, monkeypatch):
    norms = []
    norm = CalibrationTrainer._get_grad_norm
    # AdamW hides a constant factor of the gradients, so gradient norms are compared too.
    monkeypatch.setattr(
        CalibrationTrainer, "_get_grad_norm", lambda *a, **k: norms.append(float(norm(*a, **k))) or norms[-1]
    )
    whole = small_fit(model, tmp_path / "whole", method, batch_size=4)
    steps = len(norms)
    small_fit(model, tmp_path / "parts", method, batch_size=1, gradient_accumulation=4)
    assert norms[:steps] == pytest.approx(norms[steps:], rel=1e-3)
    assert same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=1e-5)
    assert whole.after["nll"] != pytest.approx(whole.before["nll"], abs=1e-4)


def test_one_process_uses_one_of_several_gpus(model, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="calibtune")
    found = trainer.TrainingArguments.__dict__["_setup_devices"]

    def two_gpus(self):
        first, device = not hasattr(self, "_n_gpu"), found.__get__(self)
        self._n_gpu = 2 if first else self._n_gpu
        return device

    trainers = []
    train = CalibrationTrainer.train
    monkeypatch.setattr(CalibrationTrainer, "train", lambda self, **k: trainers.append(self) or train(self, **k))
    monkeypatch.setattr(trainer.TrainingArguments, "_setup_devices", property(two_gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("calibtune.tuning.checks.on_cpu", lambda recipe: False)
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    assert not isinstance(trainers[0].model_wrapped, torch.nn.DataParallel)
    assert trainers[0].args.train_batch_size == 4
    said = "to train on all of them with the same steps, run: torchrun --nproc_per_node 2 -m calibtune fit ... "
    assert said + "--batch-size 2" in caplog.text


def test_gradient_checkpointing_trains_the_same_adapter(model, tmp_path):
    small_fit(model, tmp_path / "kept", "rcft")
    small_fit(model, tmp_path / "again", "rcft", gradient_checkpointing=True)
    assert same_weights(tmp_path / "kept", tmp_path / "again", rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("precision", "casts"), [("bf16", False), ("fp32", True)])
def test_peft_input_casting_is_off_under_autocast(model, tmp_path, precision, casts, monkeypatch):
    seen, trainers = set(), []
    loss = CalibrationTrainer.compute_loss

    def recorded(self, *args, **options):
        trainers.append(self)
        seen.update(casting(self.model))
        return loss(self, *args, **options)

    def casting(tuned):
        return {layer.cast_input_dtype_enabled for layer in tuned.modules() if isinstance(layer, BaseTunerLayer)}

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", recorded)
    small_fit(model, tmp_path / "out", "cft", precision=precision, max_steps=1)
    assert seen == {casts}
    assert casting(trainers[0].model) == {True}


@pytest.mark.parametrize("method", METHODS)
def test_question_order_depends_on_the_seed_not_the_method(model, tmp_path, method, monkeypatch):
    seen = []
    loss = CalibrationTrainer.compute_loss
    monkeypatch.setattr(
        CalibrationTrainer,
        "compute_loss",
        lambda self, m, inputs, **k: seen.append(inputs["input_ids"].tolist()) or loss(self, m, inputs, **k),
    )
    for name in (method, "cft"):
        small_fit(model, tmp_path / f"{name}-again", name, epochs=2, overwrite=True)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert len(seen) == 2 * 2 * 4


def test_tensorboard_logs_loss_and_held_out_metrics_per_epoch(model, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small_fit(model, tmp_path / "out", "cft", report_to="tensorboard", epochs=3)
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert scalars["train/held_out_conf_ece_10"] == [0, 4, 8, 12]
    assert scalars["train/held_out_nll"] == [0, 4, 8, 12]
    assert scalars["train/loss"] == [10]


def test_training_arguments_are_passed_to_transformers(model, tmp_path):
    recipe = small_recipe(model, "cft", training_arguments={"lr_scheduler_type": "linear"})
    assert training_arguments(recipe, tmp_path).lr_scheduler_type == "linear"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 1.0}, "--training-arguments cannot set learning_rate; use calibtune's own options"),
        ({"lerning_rate": 1.0}, "transformers.TrainingArguments has no lerning_rate; leave it out"),
    ],
)
def test_reserved_or_unknown_training_arguments_are_refused(model, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        small_fit(model, tmp_path / "out", "cft", training_arguments=given)
    assert not (tmp_path / "out").exists()


def test_non_finite_loss_stops_training_and_names_step_and_rows(model, tmp_path, monkeypatch):
    original = CalibrationTrainer.compute_loss

    def explodes(self, m, inputs, **kwargs):
        loss = original(self, m, inputs, **kwargs)
        return loss * torch.nan if self.state.global_step == 2 else loss

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", explodes)
    with pytest.raises(WorkFailed, match=r"step 3: the loss is .*training questions \[\d+.*checkpoint-2: lower"):
        small_fit(model, tmp_path / "out", "cft", save_every=1)


def test_non_finite_gradient_stops_before_the_update(model, tmp_path, monkeypatch):
    from calibtune.tuning import trainer

    original = trainer.method_loss

    def spoiled(*args, **kwargs):
        loss, letters = original(*args, **kwargs)
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss, letters

    monkeypatch.setattr(trainer, "method_loss", spoiled)
    with pytest.raises(WorkFailed, match=r"step 1: .* the gradient norm (inf|nan)"):
        small_fit(model, tmp_path / "out", "cft")


def test_liger_runs_without_its_losses(model, tmp_path):
    arguments = training_arguments(small_recipe(model, "cft", liger_kernel=True), tmp_path)
    assert arguments.use_liger_kernel
    assert arguments.liger_kernel_config == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert not training_arguments(small_recipe(model, "cft"), tmp_path).use_liger_kernel


def test_training_uses_cpu_without_an_accelerator(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    # Otherwise processes would not find each other, and bfloat16 would be refused.
    assert training_arguments(small_recipe(model, "cft", device=None, precision="bf16"), tmp_path).use_cpu
