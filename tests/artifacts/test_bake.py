"""Temperatures in a model's weights, through the command line, against a plain pass of the scaled base."""

import json

import pytest
import torch
from architectures import save_architecture
from evaluating import metrics, small_evaluation
from fitting import small_fit, words
from transformers import AutoModelForCausalLM

from calibtune.__main__ import main
from calibtune.artifacts.bake import bake, scale_logits
from calibtune.artifacts.manifest import MANIFEST
from calibtune.errors import WorkFailed

pytestmark = pytest.mark.usefixtures("mirror")

IDS = torch.tensor([[40, 7, 99, 311, 5, 18]])


def test_baked_model_gives_the_scaled_metrics_without_a_filter(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft")
    small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), held_out=6)
    bake(tmp_path / "t", tmp_path / "baked", overwrite=False)
    baked = metrics(small_evaluation(tmp_path / "out", model=str(tmp_path / "baked")))
    scaled = metrics(small_evaluation(tmp_path / "scaled", artifact=tmp_path / "t"), "mc_calib_arc_scaled", "scaled")
    for name in ("acc", "nll", "conf_ece_10", "cw_ece_14", "brier"):
        assert baked[name] == pytest.approx(scaled[name], abs=1e-4), name


def baked_apart(base, folder, temperature, precision):
    """Bake by the command line; return how far log-probabilities are from the scaled base's, both in float32."""
    assert main(words(base, folder / "t", "temperature", precision=precision)) == 0
    manifest = json.loads((folder / "t" / MANIFEST).read_text())
    manifest["temperature"]["temperature"] = temperature
    (folder / "t" / MANIFEST).write_text(json.dumps(manifest))
    assert main(["bake", "--artifact", str(folder / "t"), "--output", str(folder / "baked")]) == 0
    plain, baked = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval() for each in (base, folder / "baked")
    )
    with torch.no_grad():
        expected = (plain(IDS).logits / temperature).log_softmax(-1)
        return float((baked(IDS).logits.log_softmax(-1) - expected).abs().max())


def test_bias_of_the_output_layer_is_scaled_in_bfloat16_too(tmp_path):
    base = save_architecture("Phi", tmp_path / "base")
    made = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    torch.nn.init.normal_(made.lm_head.bias)
    made.save_pretrained(base)
    # The norm's and the bias's quotients are rounded to 8 bits; a bias near 1 that stays is .09 off.
    assert baked_apart(base, tmp_path, 1.1, "bf16") < 0.02


def test_model_whose_logits_are_not_linear_in_its_weights_is_refused(model):
    made = AutoModelForCausalLM.from_pretrained(model)
    made.lm_head.register_forward_hook(lambda layer, inputs, output: output + output**2)
    with pytest.raises(WorkFailed, match="scale neither with its final norm nor with its output layer"):
        scale_logits(made, 3.0)
