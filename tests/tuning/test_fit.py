import pytest
import torch
from fitting import METHODS, adapter_weights, same_weights, small_fit, small_recipe
from peft.tuners.tuners_utils import BaseTunerLayer

from calibtune.errors import UserError
from calibtune.tuning import trainer
from calibtune.tuning.checks import idle_gpus
from calibtune.tuning.graphs import BUCKET, StepGraphs
from calibtune.tuning.inputs import read_inputs
from calibtune.tuning.progress import overtrained
from calibtune.tuning.trainer import CalibrationTrainer, training_arguments

pytestmark = pytest.mark.usefixtures("mirror")


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
def test_accumulated_parts_train_like_one_batch(model, tmp_path, method, monkeypatch):
    norms = []
    norm = CalibrationTrainer._get_grad_norm
    # AdamW trains alike with gradients that are four times as long, so they are compared too.
    monkeypatch.setattr(
        CalibrationTrainer, "_get_grad_norm", lambda *a, **k: norms.append(float(norm(*a, **k))) or norms[-1]
    )
    whole = small_fit(model, tmp_path / "whole", method, batch_size=4)
    steps = len(norms)
    small_fit(model, tmp_path / "parts", method, batch_size=1, gradient_accumulation=4)
    assert norms[:steps] == pytest.approx(norms[steps:], rel=1e-3)
    assert same_weights(tmp_path / "whole", tmp_path / "parts", rtol=1e-3, atol=1e-5)
    assert whole.after["nll"] != pytest.approx(whole.before["nll"], abs=1e-4)


def test_with_several_gpus_in_sight_one_process_trains_on_one(model, tmp_path, monkeypatch, capsys):
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
    assert said + "--batch-size 2" in capsys.readouterr().out


def test_idle_gpus_are_told_to_a_process_that_is_alone_on_a_gpu(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "one of 2 GPUs" in idle_gpus(small_recipe(model, "cft", device="cuda"))
    assert idle_gpus(small_recipe(model, "cft", device="cpu")) == ""
    assert idle_gpus(small_recipe(model, "cft", device="cuda", cuda_graphs=True)) == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert idle_gpus(small_recipe(model, "cft", device="cuda")) == ""


def test_recomputing_activations_trains_the_same(model, tmp_path):
    small_fit(model, tmp_path / "kept", "rcft")
    small_fit(model, tmp_path / "again", "rcft", gradient_checkpointing=True)
    assert same_weights(tmp_path / "kept", tmp_path / "again", rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("precision", "casts"), [("bf16", False), ("fp32", True)])
def test_peft_casts_inputs_only_where_autocast_does_not(model, tmp_path, precision, casts, monkeypatch):
    seen, trainers = set(), []
    loss = CalibrationTrainer.compute_loss

    def noted(self, *args, **options):
        trainers.append(self)
        seen.update(casting(self.model))
        return loss(self, *args, **options)

    def casting(tuned):
        return {layer.cast_input_dtype_enabled for layer in tuned.modules() if isinstance(layer, BaseTunerLayer)}

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", noted)
    small_fit(model, tmp_path / "out", "cft", precision=precision, max_steps=1)
    assert seen == {casts}
    assert casting(trainers[0].model) == {True}


@pytest.mark.parametrize(("method", "e_step"), [*((m, None) for m in METHODS), ("rcft", "epoch")])
def test_the_step_that_graphs_record_is_the_plain_one(model, tmp_path, method, e_step, monkeypatch):
    class Unrecorded(StepGraphs):
        def run(self, batch):
            assert batch["input_ids"].shape[1] % BUCKET == 0
            assert ("target" in batch) == (method == "rcft")
            return self._pass(batch)

    seen = []
    norm = CalibrationTrainer._get_grad_norm

    def noted(self, *args, **options):
        losses = float(sum(self._losses))
        seen.append((losses, float(norm(self, *args, **options))))
        return torch.tensor(seen[-1][1])

    monkeypatch.setattr(trainer, "StepGraphs", Unrecorded)
    monkeypatch.setattr("calibtune.tuning.inputs.check_machine", lambda recipe: None)
    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", noted)
    options = {"batch_size": 2, "gradient_accumulation": 2, "epochs": 2} | ({"e_step": e_step} if e_step else {})
    small_fit(model, tmp_path / "plain", method, **options)
    plain = list(seen)
    small_fit(model, tmp_path / "graphs", method, cuda_graphs=True, **options)
    assert torch.allclose(torch.tensor(seen[len(plain) :]), torch.tensor(plain), rtol=1e-3)
    # AdamW makes steps of 1e-2 of gradients that are next to nothing, whose rounding it so shows.
    assert same_weights(tmp_path / "plain", tmp_path / "graphs", rtol=1e-3, atol=1e-4)


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
        CalibrationTrainer,
        "compute_loss",
        lambda self, m, inputs, **k: seen.append(inputs["input_ids"].tolist()) or loss(self, m, inputs, **k),
    )
    for name in (method, "cft"):
        small_fit(model, tmp_path / f"{name}-again", name, epochs=2, overwrite=True)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert len(seen) == 2 * 2 * 4


def test_options_are_shown_in_other_orders_in_each_epoch_with_the_right_one_followed(model):
    from calibtune.data.training_set import TrainingSet

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


def test_full_fine_tuning_leaves_an_ordinary_model(model, tmp_path):
    artifact = small_fit(model, tmp_path / "out", "cft", tuning="full", learning_rate=1e-3)
    from transformers import AutoModelForCausalLM

    base, tuned = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (model, tmp_path / "out"))
    assert artifact.kind == "model"
    assert all(not torch.equal(base[name], tuned[name]) for name in base if "proj" in name)


def test_tensorboard_gets_the_loss_and_the_held_out_numbers_of_each_epoch(model, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small_fit(model, tmp_path / "out", "cft", report_to="tensorboard", epochs=3)
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert scalars["train/held_out_conf_ece_10"] == [0, 4, 8]
    assert scalars["train/loss"] == [10]


def test_a_limit_renders_only_the_questions_drawn(model, monkeypatch):
    from calibtune.data.examples import Prompts

    rendered = []
    example = Prompts.example
    monkeypatch.setattr(Prompts, "example", lambda self, *a: rendered.append(1) or example(self, *a))
    inputs = read_inputs(small_recipe(model, "cft", limit=8, shuffle_options=False))
    assert len(rendered) == 8
    assert (len(inputs.examples.train), len(inputs.held_out)) == (6, 2)


def test_a_fit_that_ends_worse_than_an_earlier_epoch_says_so(model, tmp_path, caplog):
    artifact = small_fit(model, tmp_path / "far", "cft", epochs=2, learning_rate=0.3)
    assert artifact.after["nll"] > artifact.before["nll"] + 0.02
    assert "a lower --learning-rate may end better" in caplog.text
    caplog.clear()
    small_fit(model, tmp_path / "near", "cft", learning_rate=1e-6)
    assert "may end better" not in caplog.text


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({0: 1.0, 1: 1.2}, "was 1.000 before training and is 1.500 now: a"),
        ({0: 1.6, 1: 1.2}, "was 1.200 after 1 epoch and is 1.500 now: --epochs 1 or a"),
        ({0: 1.6, 1: 1.49}, None),
        ({}, None),
    ],
)
def test_the_epoch_with_the_lowest_held_out_nll_is_named(before, said):
    assert overtrained(before, 1.5) == (said and f"held-out NLL {said} lower --learning-rate may end better")


def test_any_argument_of_transformers_trainer_can_be_given(model, tmp_path):
    recipe = small_recipe(model, "cft", training_arguments={"lr_scheduler_type": "linear"})
    assert training_arguments(recipe, tmp_path).lr_scheduler_type == "linear"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 1.0}, "--training-arguments cannot set learning_rate; use calibtune's own options"),
        ({"lerning_rate": 1.0}, "transformers.TrainingArguments has no lerning_rate; leave it out"),
    ],
)
def test_an_argument_of_ours_or_of_nobody_is_refused(model, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        small_fit(model, tmp_path / "out", "cft", training_arguments=given)
    assert not (tmp_path / "out").exists()
