import json
import math
import shutil

import pytest
import torch
from evaluating import small_evaluation
from fitting import METHODS, adapter_weights, same_weights, small_fit, small_recipe, words
from transformers import PreTrainedModel

from calibtune.__main__ import main
from calibtune.artifacts.manifest import MANIFEST
from calibtune.errors import UserError
from calibtune.evaluation.evaluate import EvaluationOptions, evaluate
from calibtune.results.measures import floor_measures
from calibtune.results.samples import find_samples, read_samples
from calibtune.tuning.inputs import read_inputs
from calibtune.tuning.trainer import CalibrationTrainer

pytestmark = pytest.mark.usefixtures("mirror")


@pytest.mark.parametrize("method", METHODS)
def test_fit_changes_the_adapter_and_not_the_base(model, tmp_path, method, monkeypatch):
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
    assert len(moved) == 2 * 7  # layers x linear layers
    assert {parameter.dtype for parameter in trainers[0].model.parameters() if parameter.requires_grad} == {
        torch.float32
    }


def test_fit_is_reproducible_by_seed(model, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small_fit(model, tmp_path / name, "cft", seed=seed, lora_dropout=0.05)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c", atol=1e-6)


def test_shuffle_options_reorders_each_epoch_and_keeps_the_right_answer(model):
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


def test_full_fine_tuning_saves_a_transformers_model(model, tmp_path):
    artifact = small_fit(model, tmp_path / "out", "cft", tuning="full", learning_rate=1e-3)
    from transformers import AutoModelForCausalLM

    base, tuned = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (model, tmp_path / "out"))
    assert artifact.kind == "model"
    assert all(not torch.equal(base[name], tuned[name]) for name in base if "proj" in name)


@pytest.mark.parametrize("held_out", [6, 0])
@pytest.mark.parametrize(("kind", "message"), [("other", "gives other answers"), ("missing", "cannot be loaded again")])
def test_full_fine_tuning_that_is_written_wrongly_fails(model, tmp_path, monkeypatch, capsys, kind, message, held_out):
    write = PreTrainedModel.save_pretrained

    def half(self, folder, state_dict=None, **options):
        state = dict(state_dict or self.state_dict())
        if kind == "missing":
            del state["model.layers.1.mlp.up_proj.weight"]
        else:
            state["model.norm.weight"] = state["model.norm.weight"] * 1.1
        write(self, folder, state_dict=state, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", half)
    assert main(words(model, tmp_path / "out", "cft", tuning="full", learning_rate=1e-3, held_out=held_out)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "calibtune.json").exists()


def test_full_fine_tuning_in_bfloat16_is_what_was_measured(model, tmp_path):
    options = {"tuning": "full", "learning_rate": 1e-3, "precision": "bf16"}
    assert main(words(model, tmp_path / "out", "cft", **options)) == 0


def test_temperature_keeps_its_chat_template(model_copy, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_copy)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(model_copy)
    (model_copy / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "template").write_text(template)
    options = {"apply_chat_template": True, "chat_template": str(tmp_path / "template")}
    small_fit(model_copy, tmp_path / "t", "temperature", **options)
    assert AutoTokenizer.from_pretrained(tmp_path / "t").chat_template == template
    shown = EvaluationOptions(
        ("mc_calib_arc",), tmp_path / "out", artifact=tmp_path / "t", device="cpu", precision="fp32", batch_size="4"
    )
    (file,) = evaluate(shown).folder.glob("results_*.json")
    assert json.loads(file.read_text())["config"]["model_args"]["tokenizer"] == str(tmp_path / "t")


@pytest.fixture
def model_copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "base")


def test_temperature_is_fitted_on_a_samples_file_without_a_model(model, tmp_path):
    from calibtune.recipe import make_recipe
    from calibtune.tuning.fit import fit

    small_evaluation(tmp_path / "out", model=str(model))
    (path,) = find_samples(tmp_path / "out")
    recipe = make_recipe({"method": "temperature", "samples": str(path)}, {})
    artifact = fit(recipe, tmp_path / "t")
    assert artifact.after["nll"] <= artifact.before["nll"]
    assert artifact.tasks == ("mc_calib_arc",)
    assert math.isfinite(artifact.temperature["low"])
    rows = read_samples(path)
    noise = floor_measures(rows.log_probs, rows.labels)
    assert {name: artifact.before[name] for name in ("conf_ece_10_p", "cw_ece_10_p")}.items() <= noise.items()
    # Rows that T was fitted on cannot evaluate it.
    with pytest.raises(UserError, match="24 of its 24 evaluated questions were used for this fit"):
        small_evaluation(tmp_path / "again", model=str(model), artifact=tmp_path / "t")
    assert (tmp_path / "t" / MANIFEST).is_file()
