"""What a fit leaves, through the harness: adapters, temperatures, merged and baked models."""

import json
import math

import numpy as np
import pytest
import torch
from fitting import small_fit
from tiny import save_tiny

from calibtune.artifacts.bake import bake, scale_final_norm
from calibtune.artifacts.manifest import MANIFEST
from calibtune.artifacts.merge import merge
from calibtune.errors import UserError, WorkFailed
from calibtune.evaluation.evaluate import EvaluationOptions, evaluate
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.usefixtures("mirror")


def run(output, tasks=("mc_calib_arc",), **options):
    options = {"device": "cpu", "precision": "fp32", "batch_size": "4", **options}
    return evaluate(EvaluationOptions(tasks=tasks, output=output, **options))


def numbers(found, task="mc_calib_arc", pipeline="none"):
    end = f",{pipeline}" if pipeline != "none" else ""
    return {k.split(",")[0]: v for k, v in found.results[task].items() if k == k.split(",")[0] + end}


def test_an_adapter_is_evaluated_like_lm_evals_own_peft(model, tmp_path):
    from lm_eval import simple_evaluate

    from calibtune.data.tasks import task_manager

    small_fit(model, tmp_path / "adapter", "cft", epochs=4)
    ours = numbers(run(tmp_path / "out", artifact=tmp_path / "adapter"))
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
    assert ours == pytest.approx(theirs, abs=1e-5)
    base = numbers(run(tmp_path / "base", model=str(model)))
    assert ours["nll"] != pytest.approx(base["nll"], abs=1e-3)
    rows = read_samples(find_samples(tmp_path / "out")[0])
    assert len(rows.gold) == 24


def test_training_scores_what_the_harness_scores(model, tmp_path):
    """The fitter's own forward pass and lm_eval's give the same letter log-likelihoods."""
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
        run(tmp_path / f"out{chat}", model=str(model), apply_chat_template=chat)
        rows = read_samples(find_samples(tmp_path / f"out{chat}")[0])
        assert scores.shape == rows.loglikelihoods.shape
        # The harness counts a chat template's last line break into each letter; Eq 1 cancels what letters share.
        shift = (rows.loglikelihoods - scores)[:, :1] if chat else 0.0
        np.testing.assert_allclose(scores + shift, rows.loglikelihoods, atol=1e-4)
        assert (np.abs(shift) > 1).all() == chat


def test_a_temperature_gives_raw_and_scaled_letters_from_one_pass(model, tmp_path):
    artifact = small_fit(model, tmp_path / "t", "temperature")
    t = artifact.temperature["temperature"]
    results = run(tmp_path / "out", artifact=tmp_path / "t")
    raw, scaled = (numbers(results, "mc_calib_arc_scaled", pipeline) for pipeline in ("none", "scaled"))
    base = numbers(run(tmp_path / "base", model=str(model)))
    assert raw == pytest.approx(base, abs=1e-6)
    assert scaled["acc"] == raw["acc"]
    rows = read_samples(find_samples(tmp_path / "out")[0])
    from calibtune.results.measures import harness_measures

    expected = harness_measures(rows.loglikelihoods, rows.gold, t)
    assert scaled == pytest.approx({name: expected[name] for name in scaled}, abs=1e-9)
    assert json.loads((tmp_path / "t" / "temperature.json").read_text())["temperature"] == t


def test_a_baked_model_gives_the_scaled_letters_without_any_filter(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft")
    small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), held_out=6)
    bake(tmp_path / "t", tmp_path / "baked", overwrite=False)
    baked = numbers(run(tmp_path / "out", model=str(tmp_path / "baked")))
    scaled = numbers(run(tmp_path / "scaled", artifact=tmp_path / "t"), "mc_calib_arc_scaled", "scaled")
    for name in ("acc", "nll", "conf_ece_10", "cw_ece_14", "brier"):
        assert baked[name] == pytest.approx(scaled[name], abs=1e-4), name


def test_a_merged_model_equals_base_and_adapter(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", epochs=3)
    merge(tmp_path / "adapter", tmp_path / "merged", dequantized=False, overwrite=False)
    merged = numbers(run(tmp_path / "out", model=str(tmp_path / "merged")))
    apart = numbers(run(tmp_path / "apart", artifact=tmp_path / "adapter"))
    assert merged == pytest.approx(apart, abs=1e-4)


def test_a_four_bit_fit_is_nearest_to_its_dequantized_merge(tmp_path):
    base = save_tiny(tmp_path / "wide", hidden=64)
    small_fit(base, tmp_path / "adapter", "cft", quantization="nf4")
    merge(tmp_path / "adapter", tmp_path / "dequantized", dequantized=True, overwrite=False)
    merge(tmp_path / "adapter", tmp_path / "original", dequantized=False, overwrite=False)
    nll = {
        "4-bit": numbers(run(tmp_path / "a", artifact=tmp_path / "adapter"))["nll"],
        "dequantized": numbers(run(tmp_path / "b", model=str(tmp_path / "dequantized")))["nll"],
        "original": numbers(run(tmp_path / "c", model=str(tmp_path / "original")))["nll"],
    }
    assert nll["dequantized"] == pytest.approx(nll["4-bit"], abs=1e-3)
    assert abs(nll["original"] - nll["4-bit"]) > abs(nll["dequantized"] - nll["4-bit"])


def test_merging_what_is_no_adapter_and_baking_what_is_no_temperature_is_refused(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    small_fit(model, tmp_path / "t", "temperature")
    with pytest.raises(UserError, match="only adapters can be merged"):
        merge(tmp_path / "t", tmp_path / "out", False, False)
    with pytest.raises(UserError, match=r"--dequantized: .* was not trained on a 4-bit base"):
        merge(tmp_path / "adapter", tmp_path / "out", True, False)
    with pytest.raises(UserError, match="is not a temperature"):
        bake(tmp_path / "adapter", tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "opt-like"])
def test_final_norms_of_several_architectures_scale_the_logits(name):
    from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    small = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**small)),
        "gemma": lambda: GemmaForCausalLM(GemmaConfig(**small, head_dim=8)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    }
    if name == "opt-like":
        made = models["llama"]().eval()
        made.lm_head.bias = torch.nn.Parameter(torch.randn(64))
        with pytest.raises(WorkFailed, match="do not scale with its final norm"):
            scale_final_norm(made, 3.0)
        return
    made = models[name]().eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = made(ids).logits
        scale_final_norm(made, 3.0)
        assert torch.allclose(made(ids).logits, before / 3.0, atol=1e-4)


def test_evaluating_what_was_trained_on_is_refused(model, tmp_path, mirror):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    train = mirror / "allenai/ai2_arc/ARC-Challenge/train.jsonl"
    test = mirror / "allenai/ai2_arc/ARC-Challenge/test.jsonl"
    test.write_text(test.read_text() + train.read_text().splitlines()[3] + "\n")
    with pytest.raises(UserError, match="1 of its 25 evaluated questions were used for this fit, the first 'Which"):
        run(tmp_path / "out", artifact=tmp_path / "adapter")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError("CUDA error: out of memory")])
def test_evaluation_out_of_memory_names_the_batch_size(model, tmp_path, monkeypatch, error):
    from lm_eval.models.huggingface import HFLM

    def full(*_, **__):
        raise error

    monkeypatch.setattr(HFLM, "_model_call", full)
    with pytest.raises(WorkFailed, match="out of memory with --batch-size 4; give a smaller one"):
        run(tmp_path / "out", model=str(model))


def test_another_base_than_the_artifacts_is_refused(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    with pytest.raises(UserError, match=r"was fitted on .*, not on other/base"):
        run(tmp_path / "out", artifact=tmp_path / "adapter", model="other/base")


def test_a_temperature_without_a_model_comes_from_a_samples_file(model, tmp_path):
    from calibtune.recipe import make_recipe
    from calibtune.tuning.fit import fit

    run(tmp_path / "out", model=str(model))
    (path,) = find_samples(tmp_path / "out")
    recipe = make_recipe({"method": "temperature", "samples": str(path)}, {})
    artifact = fit(recipe, tmp_path / "t")
    assert artifact.after["nll"] <= artifact.before["nll"]
    assert artifact.tasks == ("mc_calib_arc",)
    assert math.isfinite(artifact.temperature["low"])
    # The rows that T was fitted on are not for evaluating it.
    with pytest.raises(UserError, match="24 of its 24 evaluated questions were used for this fit"):
        run(tmp_path / "again", model=str(model), artifact=tmp_path / "t")
    assert (tmp_path / "t" / MANIFEST).is_file()
