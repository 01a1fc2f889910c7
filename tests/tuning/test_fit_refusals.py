"""Bad input of a fit, a merge and a baking: nothing is lost, nothing stands in the way of the mended command."""

import json
import shutil

import pytest
import torch
from fitting import small_fit, small_recipe
from safetensors.torch import load_file, save_file

from calibtune.artifacts import whole_models
from calibtune.artifacts.bake import bake
from calibtune.artifacts.merge import merge
from calibtune.errors import UserError, WorkFailed
from calibtune.evaluation.evaluate import EvaluationOptions, evaluate
from calibtune.tuning import fit as fit_module
from calibtune.tuning.fit import fit

pytestmark = pytest.mark.usefixtures("mirror")


def files(folder):
    """Contents of a folder by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def copied(model, tmp_path):
    return shutil.copytree(model, tmp_path / "base")


def damage(folder, kind):
    """A model's folder in some bad state."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "gone":
        weights.unlink()
    elif kind == "other shape":
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 64}))
    elif kind == "more layers":
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    elif kind == "words":
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": "four"}))
    elif kind == "few tokens":
        tensors = load_file(weights)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = tensors[name][:40].clone()
        save_file(tensors, weights, {"format": "pt"})
        config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 40}))


DAMAGED = [
    ("cut", "cannot be loaded: .*incomplete metadata"),
    ("gone", "cannot be loaded: .*no file named"),
    ("other shape", "cannot be loaded: .*mismatched"),
    ("more layers", "lacks 9 weights that its config.json requires, such as model.layers.2"),
    ("words", "cannot be loaded: .*num_attention_heads"),
    ("few tokens", r"has a tokenizer that gives token \d+, but the vocabulary has 40 tokens"),
]


@pytest.mark.parametrize(("kind", "message"), DAMAGED)
def test_a_damaged_model_is_one_sentence_that_loses_nothing(model, copied, tmp_path, kind, message):
    small_fit(model, tmp_path / "kept", "cft", max_steps=1)
    before = files(tmp_path / "kept")
    damage(copied, kind)
    with pytest.raises(UserError, match=message):
        small_fit(copied, tmp_path / "kept", "cft", overwrite=True)
    with pytest.raises(UserError, match=message):
        small_fit(copied, tmp_path / "new", "cft")
    assert files(tmp_path / "kept") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, r"a step takes 64 questions .* only 18 to train on; lower"),
        ({"limit": 1}, "is left for the E-step; raise --limit"),
        ({"method": "temperature", "limit": 1, "lambda": None}, "is left to fit T on; raise --limit"),
    ],
)
def test_too_few_questions_are_said_before_the_model_is_loaded(model, tmp_path, monkeypatch, changes, message):
    small_fit(model, tmp_path / "kept", "cft", max_steps=1)
    before = files(tmp_path / "kept")
    monkeypatch.setattr(fit_module, "load_base", lambda recipe: pytest.fail("loaded"))
    changes = {"method": "rcft", "model": model, **changes}
    if changes["method"] == "temperature":
        del changes["lambda"]
    with pytest.raises(UserError, match=message):
        small_fit(output=tmp_path / "kept", overwrite=True, **changes)
    with pytest.raises(UserError, match=message):
        small_fit(output=tmp_path / "new", **changes)
    assert files(tmp_path / "kept") == before
    assert not (tmp_path / "new").exists()


def test_overwriting_what_the_command_reads_is_refused(model, copied, tmp_path, mirror):
    small_fit(copied, tmp_path / "adapter", "cft", max_steps=1)
    small_fit(copied, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
    before = files(tmp_path)
    recipe = small_recipe(copied, "cft")
    for output in (copied, tmp_path, mirror):
        with pytest.raises(UserError, match="which this command reads; give another folder"):
            fit(recipe, output, overwrite=True)
    on_top = small_recipe(copied, "temperature", artifact=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match=r"contains .*adapter, which this command reads"):
        fit(on_top, tmp_path / "adapter", overwrite=True)
    for output in (tmp_path / "adapter", copied):
        with pytest.raises(UserError, match="which this command reads"):
            merge(tmp_path / "adapter", output, dequantized=False, overwrite=True)
        with pytest.raises(UserError, match="which this command reads"):
            bake(tmp_path / "t", output, overwrite=True)
    assert files(tmp_path) == before


def test_a_merge_that_fails_keeps_what_it_was_to_overwrite(copied, tmp_path):
    small_fit(copied, tmp_path / "adapter", "cft", max_steps=1)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").write_text("kept")
    shutil.rmtree(copied)
    with pytest.raises(UserError, match="does not exist; give a folder that transformers loads"):
        merge(tmp_path / "adapter", tmp_path / "merged", dequantized=False, overwrite=True)
    assert (tmp_path / "merged" / "precious").read_text() == "kept"


def test_a_merge_that_cannot_be_written_is_one_sentence_and_leaves_nothing(copied, tmp_path, monkeypatch):
    small_fit(copied, tmp_path / "adapter", "cft", max_steps=1)

    def full(self, folder, **options):
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(WorkFailed, match=r"merged cannot be written \(.*No space left on device\)"):
        merge(tmp_path / "adapter", tmp_path / "merged", dequantized=False, overwrite=False)
    assert not (tmp_path / "merged").exists()
    (tmp_path / "file").touch()
    with pytest.raises(WorkFailed, match="cannot be written"):
        whole_models.save_model(torch.nn.Linear(1, 1), None, tmp_path / "file" / "below", {})


def test_a_finished_fit_is_not_taken_for_that_of_another_recipe(model, tmp_path):
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    again = small_fit(model, tmp_path / "out", "cft", max_steps=1, resume=True)
    assert again.method == "cft"
    with pytest.raises(UserError, match=r"started with another recipe \(max_steps 1 -> 2\).*--overwrite"):
        small_fit(model, tmp_path / "out", "cft", max_steps=2, resume=True)
    finished = small_fit(model, tmp_path / "auto", "cft", max_steps=1, auto_batch=True)
    assert small_fit(model, tmp_path / "auto", "cft", max_steps=1, auto_batch=True, resume=True) == finished


def test_a_temperature_is_not_fitted_on_an_adapter_of_another_base(model, copied, tmp_path):
    small_fit(copied, tmp_path / "adapter", "cft", max_steps=1)
    small_fit(model, tmp_path / "t", "temperature")
    with pytest.raises(UserError, match=r"was fitted on .*base, not on"):
        small_fit(model, tmp_path / "out", "temperature", artifact=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="t is a temperature; give an adapter"):
        small_fit(model, tmp_path / "out", "temperature", artifact=str(tmp_path / "t"))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"the weights in .*adapter are damaged"):
        small_fit(copied, tmp_path / "out", "temperature", artifact=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter holds no weights"):
        small_fit(copied, tmp_path / "out", "temperature", artifact=str(tmp_path / "adapter"))
    assert not (tmp_path / "out").exists()


def test_a_temperature_keeps_the_chat_template_that_it_was_fitted_with(copied, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copied)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(copied)
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "template").write_text(template)
    options = {"apply_chat_template": True, "chat_template": str(tmp_path / "template")}
    small_fit(copied, tmp_path / "t", "temperature", **options)
    assert AutoTokenizer.from_pretrained(tmp_path / "t").chat_template == template
    shown = EvaluationOptions(
        ("mc_calib_arc",), tmp_path / "out", artifact=tmp_path / "t", device="cpu", precision="fp32", batch_size="4"
    )
    (file,) = evaluate(shown).folder.glob("results_*.json")
    assert json.loads(file.read_text())["config"]["model_args"]["tokenizer"] == str(tmp_path / "t")
