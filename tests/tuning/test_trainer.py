"""Train steps: accumulation, devices, precision, order of the questions, Trainer's arguments."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from fitting import METHODS, same_weights, small_fit, small_recipe, words
from peft.tuners.tuners_utils import BaseTunerLayer

from calibtune.__main__ import main
from calibtune.artifacts.manifest import read_artifact
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


CURVES = ("held_out_nll", "held_out_conf_ece_10", "held_out_acc")


@pytest.mark.parametrize("method", [pytest.param("cft", marks=pytest.mark.slow), "rcft"])
def test_tensorboard_has_curves_of_the_held_out_questions_by_epoch(model, tmp_path, method):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(words(model, tmp_path / "out", method, report_to="tensorboard", epochs=3)) == 0
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    for name in CURVES:
        assert [event.step for event in events.Scalars(f"train/{name}")] == [0, 4, 8, 12]
    epochs = {event.step: event.value for event in events.Scalars("train/epoch")}
    assert [epochs[step] for step in (0, 4, 8, 12)] == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("train/loss")] == [10]
    ends = [events.Scalars(f"train/{name}")[place].value for name in CURVES for place in (0, -1)]
    artifact = read_artifact(tmp_path / "out")
    names = [name.removeprefix("held_out_") for name in CURVES]
    assert ends == pytest.approx([side[name] for name in names for side in (artifact.before, artifact.after)], rel=1e-5)


@pytest.mark.slow
def test_wandb_gets_the_same_curves(model, mirror, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "calibtune", *words(model, tmp_path / "out", report_to="wandb", epochs=2)]
    subprocess.run(command, cwd=mirror, env=environment, check=True, timeout=300)
    (file,) = tmp_path.rglob("run-*.wandb")
    data = file.read_bytes()
    # Before the fit and after each epoch; the summary at the end has each once more.
    assert [data.count(f"train/{name}".encode()) >= 3 for name in CURVES] == [True] * 3


def test_training_arguments_are_passed_to_transformers(model, tmp_path):
    recipe = small_recipe(model, "cft", training_arguments={"lr_scheduler_type": "linear"})
    assert training_arguments(recipe, tmp_path).lr_scheduler_type == "linear"


def test_tokens_seen_are_counted_where_trainers_argument_asks_for_it(model, tmp_path, monkeypatch):
    counts, step = [], CalibrationTrainer.training_step

    def noted(self, wrapped, inputs, *args):
        counts.append((self.state.num_input_tokens_seen, sum(part["input_ids"].numel() for part in inputs["parts"])))
        return step(self, wrapped, inputs, *args)

    monkeypatch.setattr(CalibrationTrainer, "training_step", noted)
    monkeypatch.setattr(trainer, "most_tokens", lambda rows, batch_size: 220)  # batches are cut
    small_fit(model, tmp_path / "out", "cft", training_arguments={"include_num_input_tokens_seen": "all"})
    assert [seen for seen, _ in counts[1:]] == [sum(some for _, some in counts[:n]) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 1.0}, "--training-arguments cannot set learning_rate; use calibtune's own options"),
        ({"lerning_rate": 1.0}, "transformers.TrainingArguments has no lerning_rate; leave it out"),
        ({"ddp_bucket_cap_mb": 5}, "ddp_bucket_cap_mb would do nothing, since gradients are averaged without Dist"),
    ],
)
def test_reserved_idle_or_unknown_training_arguments_are_refused(model, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        small_fit(model, tmp_path / "out", "cft", training_arguments=given)
    assert not (tmp_path / "out").exists()


def spoil(monkeypatch, step):
    """Let the loss of a step, the first of which is 1, be no number."""
    original = CalibrationTrainer.compute_loss

    def explodes(self, m, inputs, **kwargs):
        loss = original(self, m, inputs, **kwargs)
        return loss * torch.nan if self.state.global_step + 1 == step else loss

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", explodes)


def test_non_finite_loss_stops_training_and_names_step_and_rows(model, tmp_path, monkeypatch):
    spoil(monkeypatch, step=3)
    with pytest.raises(WorkFailed, match=r"step 3: the loss is .*training questions \[\d+.*checkpoint-2: lower"):
        small_fit(model, tmp_path / "out", "cft", save_every=1)


@pytest.mark.parametrize(("save_every", "epochs", "saved"), [(0, 1, []), (4, 1, []), (3, 2, ["checkpoint-3"])])
def test_an_epochs_last_step_that_is_not_finite_is_found_before_it_is_saved_or_scored(
    model, tmp_path, monkeypatch, save_every, epochs, saved
):
    spoil(monkeypatch, step=4)
    with pytest.raises(WorkFailed, match=r"step 4: .* gradient norm nan"):
        small_fit(model, tmp_path / "out", "cft", save_every=save_every, epochs=epochs)
    assert [path.name for path in (tmp_path / "out" / "checkpoints").glob("checkpoint-*")] == saved


def test_a_training_step_visits_no_module_beside_the_pass(model, tmp_path, monkeypatch):
    visits, step = [], CalibrationTrainer.training_step
    visit = torch.nn.Module.named_modules

    def noted(self, *args, **options):
        visits.append(self)
        return visit(self, *args, **options)

    def counted(self, *args, **options):
        steps.append(len(visits))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Module, "named_modules", visit)
            return step(self, *args, **options)

    steps = []
    monkeypatch.setattr(CalibrationTrainer, "training_step", counted)
    monkeypatch.setattr(torch.nn.Module, "named_modules", noted)
    small_fit(model, tmp_path / "out", "cft")
    # Trainer looks for sharded gradients once, after the first step.
    assert len(steps) == 4
    assert steps[3] == steps[1]


def test_held_out_questions_are_scored_once_before_training_and_after_each_epoch(model, tmp_path, monkeypatch):
    from calibtune.tuning import fit as fits

    counts, tables = [], []
    score, table = fits.score, trainer.epoch_table
    for module in (fits, trainer):
        monkeypatch.setattr(module, "score", lambda *args: counts.append(len(args[1])) or score(*args))
    monkeypatch.setattr(trainer, "epoch_table", lambda *args: tables.append(args[2]) or table(*args))
    artifact = small_fit(model, tmp_path / "out", "cft", epochs=2)
    assert counts == [6, 6, 6]
    assert [tables[0][name] for name in ("nll", "acc")] == [artifact.before[name] for name in ("nll", "acc")]


def test_moments_of_a_step_are_written_without_checksums_while_training_goes_on(model, tmp_path, monkeypatch):
    seen, trained, ended = [], threading.Event(), CalibrationTrainer._get_grad_norm
    save = torch.save

    def watched(found, path):
        if Path(path).name == "optimizer.pt":
            assert trained.wait(60), "the next step waited for the checkpoint"
            seen.append(({int(each["step"]) for each in found["state"].values()}, threading.current_thread()))
            assert not torch.serialization.get_crc32_options()
        save(found, path)

    def stepped(self, *args, **options):
        if self.state.global_step == 3:
            trained.set()
        return ended(self, *args, **options)

    monkeypatch.setattr(torch, "save", watched)
    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", stepped)
    small_fit(model, tmp_path / "out", "cft", epochs=3, max_steps=4, save_every=2)
    assert [steps for steps, _ in seen] == [{2}, {4}]
    assert threading.main_thread() not in [thread for _, thread in seen]
    assert torch.serialization.get_crc32_options()


@pytest.mark.parametrize("changes", [{"tuning": "full"}, {"training_arguments": {"save_total_limit": 1}}], ids=str)
def test_training_waits_where_moments_are_large_or_the_one_older_checkpoint_is_then_removed(
    model, tmp_path, monkeypatch, changes
):
    seen, save = [], torch.save

    def watched(found, path):
        if Path(path).name == "optimizer.pt":
            seen.append((threading.current_thread(), torch.serialization.get_crc32_options()))
        save(found, path)

    monkeypatch.setattr(torch, "save", watched)
    small_fit(model, tmp_path / "out", "cft", max_steps=1, **changes)
    assert seen == [(threading.main_thread(), False)]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_checkpoint_that_cannot_be_written_stops_the_fit(model, tmp_path, monkeypatch, steps):
    save = torch.save

    def full(found, path):
        if Path(path).name == "optimizer.pt":
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        save(found, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WorkFailed, match=r"no space is left on the disk of .* with --resume"):
        small_fit(model, tmp_path / "out", "cft", max_steps=steps, save_every=1)
    assert not list((tmp_path / "out").rglob("whole.json"))
    assert not (tmp_path / "out" / "calibtune.json").exists()


def test_no_step_is_trained_after_a_checkpoint_is_known_not_to_be_written(model, tmp_path, monkeypatch):
    steps, norm = [], CalibrationTrainer._get_grad_norm

    def full(*args):
        raise OSError("No space left on device")

    def stepped(self, *args, **options):
        steps.append(self.state.global_step + 1)
        if self._written is not None:
            wait([self._written])
        return norm(self, *args, **options)

    monkeypatch.setattr(trainer, "seal", full)
    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", stepped)
    with pytest.raises(WorkFailed, match="no space is left"):
        small_fit(model, tmp_path / "out", "cft", epochs=3, max_steps=6, save_every=2)
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("step", [1, None])
def test_a_stopped_fit_first_completes_its_checkpoint(model, tmp_path, monkeypatch, step):
    from calibtune.models import sharding

    norm, seal = CalibrationTrainer._get_grad_norm, trainer.seal

    def stops(self, *args, **options):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return norm(self, *args, **options)

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "seal", lambda *args: time.sleep(0.5) or seal(*args))
    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", stops)
    monkeypatch.setattr(sharding, "save_whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        small_fit(model, tmp_path / "out", "cft", max_steps=2, save_every=1)
    assert (tmp_path / "out" / "checkpoints" / f"checkpoint-{step or 2}" / "whole.json").is_file()


def test_an_interrupt_is_not_replaced_by_a_checkpoint_that_cannot_be_written(model, tmp_path, monkeypatch, caplog):
    def full(*args):
        time.sleep(0.5)
        raise OSError("No space left on device")

    def stops(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "seal", full)
    monkeypatch.setattr(CalibrationTrainer, "begin_epoch", lambda self, epoch: stops(self) if epoch else None)
    with pytest.raises(KeyboardInterrupt):
        small_fit(model, tmp_path / "out", "cft", epochs=2)
    assert "the last checkpoint could not be written: No space left on device" in caplog.text


def test_non_finite_gradient_stops_the_fit(model, tmp_path, monkeypatch):
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
