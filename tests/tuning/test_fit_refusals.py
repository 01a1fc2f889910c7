"""Bad input of a fit: nothing is lost, and the corrected command runs."""

import json
import shutil

import pytest
from fitting import adapter_weights, small_fit, small_recipe
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from calibtune.artifacts.bake import bake
from calibtune.artifacts.manifest import read_artifact
from calibtune.artifacts.merge import merge
from calibtune.errors import UserError
from calibtune.tuning import fit as fit_module
from calibtune.tuning.fit import fit

pytestmark = pytest.mark.usefixtures("mirror")


def contents(folder):
    """Return a folder's file contents by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def model_copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "base")


def damage_model(folder, kind):
    """Damage a model's folder."""
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
    (
        "other shape",
        "weights of other shapes than its config.json says, such as lm_head.weight, .*32. instead of",
    ),
    ("more layers", "lacks 9 weights that its config.json requires, such as model.layers.2"),
    ("words", "cannot be loaded: .*num_attention_heads"),
    ("few tokens", r"has a tokenizer that gives token \d+, but the vocabulary has 40 tokens"),
]


@pytest.mark.parametrize(("kind", "message"), DAMAGED)
def test_damaged_model_is_refused_and_output_kept(model, model_copy, tmp_path, kind, message):
    small_fit(model, tmp_path / "kept", "cft", max_steps=1)
    before = contents(tmp_path / "kept")
    damage_model(model_copy, kind)
    with pytest.raises(UserError, match=message):
        small_fit(model_copy, tmp_path / "kept", "cft", overwrite=True)
    with pytest.raises(UserError, match=message):
        small_fit(model_copy, tmp_path / "new", "cft")
    assert contents(tmp_path / "kept") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, r"a step takes 64 questions .* only 18 to train on; lower"),
        ({"limit": 1}, "is left for the E-step; raise --limit"),
    ],
)
def test_too_few_questions_are_refused_before_loading_the_model(model, tmp_path, monkeypatch, changes, message):
    small_fit(model, tmp_path / "kept", "cft", max_steps=1)
    before = contents(tmp_path / "kept")
    monkeypatch.setattr(fit_module, "load_base", lambda recipe: pytest.fail("loaded"))
    changes = {"method": "rcft", "model": model, **changes}
    with pytest.raises(UserError, match=message):
        small_fit(output=tmp_path / "kept", overwrite=True, **changes)
    with pytest.raises(UserError, match=message):
        small_fit(output=tmp_path / "new", **changes)
    assert contents(tmp_path / "kept") == before
    assert not (tmp_path / "new").exists()


def test_overwriting_an_input_is_refused(model, model_copy, tmp_path, mirror):
    small_fit(model_copy, tmp_path / "adapter", "cft", max_steps=1)
    small_fit(model_copy, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
    before = contents(tmp_path)
    recipe = small_recipe(model_copy, "cft")
    for output in (model_copy, tmp_path, mirror):
        with pytest.raises(UserError, match="which this command reads; give another folder"):
            fit(recipe, output, overwrite=True)
    on_top = small_recipe(model_copy, "temperature", artifact=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match=r"contains .*adapter, which this command reads"):
        fit(on_top, tmp_path / "adapter", overwrite=True)
    for output in (tmp_path / "adapter", model_copy):
        with pytest.raises(UserError, match="which this command reads"):
            merge(tmp_path / "adapter", output, dequantized=False, overwrite=True)
        with pytest.raises(UserError, match="which this command reads"):
            bake(tmp_path / "t", output, overwrite=True)
    assert contents(tmp_path) == before


def test_temperature_refuses_an_unusable_adapter(model, model_copy, tmp_path):
    small_fit(model_copy, tmp_path / "adapter", "cft", max_steps=1)
    small_fit(model, tmp_path / "t", "temperature")
    with pytest.raises(UserError, match="has other weights than the model that"):
        small_fit(
            save_tiny(tmp_path / "other", seed=1), tmp_path / "out", "temperature", artifact=str(tmp_path / "adapter")
        )
    with pytest.raises(UserError, match="t is a temperature; give an adapter"):
        small_fit(model, tmp_path / "out", "temperature", artifact=str(tmp_path / "t"))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"the weights in .*adapter are damaged"):
        small_fit(model_copy, tmp_path / "out", "temperature", artifact=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter holds no weights"):
        small_fit(model_copy, tmp_path / "out", "temperature", artifact=str(tmp_path / "adapter"))
    assert not (tmp_path / "out").exists()


def test_refused_fit_keeps_the_old_output_and_makes_no_new_one(model, tmp_path, mirror):
    small_fit(model, tmp_path / "kept", "cft", max_steps=1)
    before = adapter_weights(tmp_path / "kept")
    for changes in (
        {"include_path": str(tmp_path / "none")},
        {"method": "temperature", "samples": str(tmp_path / "none.jsonl")},
    ):
        with pytest.raises(UserError):
            small_fit(model, **{"method": "cft", "output": tmp_path / "kept", "overwrite": True, **changes})
        with pytest.raises(UserError):
            small_fit(model, **{"method": "cft", "output": tmp_path / "new", **changes})
    assert before.keys() == adapter_weights(tmp_path / "kept").keys()
    assert (tmp_path / "kept" / "calibtune.json").is_file()
    assert not (tmp_path / "new").exists()


def test_existing_output_is_kept_without_overwrite(model, tmp_path):
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    with pytest.raises(UserError, match="is not empty"):
        small_fit(model, tmp_path / "out", "cft", max_steps=1)
    small_fit(model, tmp_path / "out", "label-smoothing", max_steps=1, overwrite=True)
    assert read_artifact(tmp_path / "out").method == "label-smoothing"


def test_adapter_of_another_base_is_refused(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    # Another model, also under the same folder name.
    for folder in (tmp_path / "other", tmp_path / model.name):
        other = save_tiny(folder, seed=1)
        with pytest.raises(UserError, match="has other weights than the model that"):
            small_fit(other, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
        assert not (tmp_path / "t").exists()
    with pytest.raises(UserError, match="no finished artifact"):
        fit(small_recipe(other, "temperature", artifact=str(tmp_path)), tmp_path / "t")


def test_a_temperature_is_not_fitted_on_what_its_adapter_was_trained_on(model, tmp_path, mirror):
    small_fit(model, tmp_path / "adapter", "cft", held_out=0, batch_size=24)
    with pytest.raises(UserError, match="is left to fit T on; raise --limit"):
        small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))


def test_a_temperature_uses_every_question_of_a_limit(model, tmp_path, mirror):
    artifact = small_fit(model, tmp_path / "t", "temperature", limit=16, held_out=500)
    assert len(artifact.documents["held_out"]) == 16
