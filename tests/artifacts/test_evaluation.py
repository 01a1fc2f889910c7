"""Evaluation of artifacts by the harness."""

import numpy as np
import pytest
import torch
from evaluating import metrics, small_evaluation
from fitting import small_fit
from tiny import save_tiny

from calibtune.errors import UserError, WorkFailed
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.usefixtures("mirror")


def test_adapter_evaluation_equals_lm_evals_peft_option(model, tmp_path):
    from lm_eval import simple_evaluate

    from calibtune.data.tasks import task_manager

    small_fit(model, tmp_path / "adapter", "cft", epochs=4)
    ours = metrics(small_evaluation(tmp_path / "out", artifact=tmp_path / "adapter"))
    plain = simple_evaluate(
        "hf",
        f"pretrained={model},peft={tmp_path / 'adapter'},dtype=float32",
        ["mc_calib_arc"],
        device="cpu",
        task_manager=task_manager(["mc_calib_arc"]),
        bootstrap_iters=0,
    )
    found = plain["results"]["mc_calib_arc"]
    theirs = {k.split(",")[0]: v for k, v in found.items() if k.endswith(",none") and "stderr" not in k}
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-5)
    base = metrics(small_evaluation(tmp_path / "base", model=str(model)))
    assert ours["nll"] != pytest.approx(base["nll"], abs=1e-3)
    rows = read_samples(find_samples(tmp_path / "out")[0])
    assert len(rows.labels) == 24


def test_training_scores_equal_the_harness_scores(model, tmp_path):
    """Compare the fit's forward pass with lm_eval's letter log-likelihoods."""
    from fitting import small_recipe

    from calibtune.data.examples import Prompts
    from calibtune.data.tokens import tokenize
    from calibtune.models.loading import load_base
    from calibtune.models.scores import score
    from calibtune.tuning.inputs import read_inputs

    for chat in (False, True):
        inputs = read_inputs(small_recipe(model, "cft", apply_chat_template=chat))
        prompts: Prompts = inputs.examples.train[0].prompts
        examples = [prompts.example(doc) for doc in prompts.task.eval_docs]
        scores = score(load_base(inputs.recipe.spec), tokenize(examples, inputs.encoder, 512), 1, 4)
        small_evaluation(tmp_path / f"out{chat}", model=str(model), apply_chat_template=chat)
        rows = read_samples(find_samples(tmp_path / f"out{chat}")[0])
        assert scores.shape == rows.log_probs.shape
        np.testing.assert_allclose(scores, rows.log_probs, atol=1e-4)


def test_evaluating_on_training_questions_is_refused(model, tmp_path, mirror):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    train = mirror / "allenai/ai2_arc/ARC-Challenge/train.jsonl"
    test = mirror / "allenai/ai2_arc/ARC-Challenge/test.jsonl"
    test.write_text(test.read_text() + train.read_text().splitlines()[3] + "\n")
    with pytest.raises(UserError, match="1 of its 25 evaluated questions were used for this fit, the first 'Which"):
        small_evaluation(tmp_path / "out", artifact=tmp_path / "adapter")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError("CUDA error: out of memory")])
def test_out_of_memory_names_the_batch_size(model, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", full)
    with pytest.raises(WorkFailed, match="out of memory with --batch-size 4; give a smaller one"):
        small_evaluation(tmp_path / "out", model=str(model))


def test_evaluating_on_another_base_is_refused(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    other = save_tiny(tmp_path / "dpo" / model.name, seed=1)
    with pytest.raises(UserError, match="has other weights than the model that"):
        small_evaluation(tmp_path / "out", artifact=tmp_path / "adapter", model=str(other))
