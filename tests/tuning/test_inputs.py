import pytest
from fitting import small_fit, small_recipe

from calibtune.artifacts.manifest import read_artifact
from calibtune.errors import UserError
from calibtune.tuning.inputs import read_inputs

pytestmark = pytest.mark.usefixtures("mirror")


def test_training_held_out_and_evaluated_questions_are_disjoint(model):
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


def test_limit_renders_only_the_sampled_questions(model, monkeypatch):
    from calibtune.data.examples import Prompts

    rendered = []
    example = Prompts.example
    monkeypatch.setattr(Prompts, "example", lambda self, *a: rendered.append(1) or example(self, *a))
    inputs = read_inputs(small_recipe(model, "cft", limit=8, shuffle_options=False))
    assert len(rendered) == 8
    assert (len(inputs.examples.train), len(inputs.held_out)) == (6, 2)


def test_batch_larger_than_the_training_set_is_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"a step takes 64 questions .* only 18"):
        small_fit(model, tmp_path / "out", "cft", batch_size=64)


def test_temperature_is_fitted_on_questions_new_to_the_adapter(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", held_out=3)
    artifact = small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), held_out=6)
    trained = set(read_artifact(tmp_path / "adapter").documents["train"])
    assert not trained & set(artifact.documents["held_out"])
    assert set(artifact.documents["train"]) == trained
    assert artifact.after["acc"] == artifact.before["acc"]
    assert artifact.after["nll"] <= artifact.before["nll"] + 1e-9


def test_temperature_without_new_questions_is_refused(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", held_out=0)
    with pytest.raises(UserError, match="no question of mc_calib_arc is left to fit T on"):
        small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
