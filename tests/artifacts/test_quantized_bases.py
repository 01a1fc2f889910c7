"""Bases in few bits through fit, eval, merge and bake: the right model, or one sentence and nothing written."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from architectures import save_architecture
from evaluating import metrics, small_evaluation
from fitting import words
from tiny import build_tokenizer, save_tiny
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from calibtune.__main__ import main
from calibtune.artifacts.manifest import MANIFEST, read_artifact

pytestmark = pytest.mark.usefixtures("mirror")


def save_quantized(base, folder, **kind):
    """Write a model's weights in few bits, as bitsandbytes' checkpoints on the hub are."""
    config = BitsAndBytesConfig(**kind, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=config)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def four_bit_base(tmp_path):
    base = save_tiny(tmp_path / "plain", hidden=64)
    return save_quantized(base, tmp_path / "base", load_in_4bit=True, bnb_4bit_quant_type="nf4")


@pytest.fixture
def refused(tmp_path, capsys):
    """Run a command, which must end in one sentence with exit code 2 and write nothing; returns the sentence."""

    def run(*given):
        out = tmp_path / "refused"
        assert main([*map(str, given), "--output", str(out)]) == 2
        assert not out.exists()
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("calibtune: error: ")
        return said

    return run


def same_numbers(first, second, abs=1e-3):
    return all(first[name] == pytest.approx(second[name], abs=abs) for name in ("acc", "nll", "conf_ece_10"))


def test_adapter_of_a_4_bit_base_says_so_and_is_merged_into_plain_weights(four_bit_base, tmp_path, refused):
    assert main(words(four_bit_base, tmp_path / "adapter")) == 0
    assert read_artifact(tmp_path / "adapter").base_quantization == "nf4"
    apart = metrics(small_evaluation(tmp_path / "apart", artifact=tmp_path / "adapter"))
    assert apart["nll"] == pytest.approx(read_artifact(tmp_path / "adapter").after["nll"], abs=1) != 0
    merge = ["merge", "--artifact", str(tmp_path / "adapter")]
    assert "no original ones to merge into; give --dequantized" in refused(*merge)
    assert main([*merge, "--dequantized", "--output", str(tmp_path / "merged")]) == 0
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert same_numbers(metrics(small_evaluation(tmp_path / "out", model=str(tmp_path / "merged"))), apart)


@pytest.mark.parametrize("option", [{}, {"quantization": "nf4"}])
def test_temperature_of_4_bit_weights_is_baked_into_them_in_plain_form(four_bit_base, tmp_path, option):
    base = four_bit_base if not option else tmp_path / "plain"
    assert main(words(base, tmp_path / "t", "temperature", **option)) == 0
    assert main(["bake", "--artifact", str(tmp_path / "t"), "--output", str(tmp_path / "baked")]) == 0
    scaled = small_evaluation(tmp_path / "scaled", artifact=tmp_path / "t")
    baked = metrics(small_evaluation(tmp_path / "out", model=str(tmp_path / "baked")))
    assert same_numbers(baked, metrics(scaled, "mc_calib_arc_scaled", "scaled"))


def test_quantized_base_cannot_be_trained_in_full_or_quantized_otherwise(four_bit_base, tmp_path, refused):
    full = words(four_bit_base, tmp_path, "cft", tuning="full")
    assert "--tuning full: " in (said := refused(full[0], *full[3:]))
    assert "holds its weights in nf4, which cannot be trained; use --tuning lora" in said
    fp4 = save_quantized(tmp_path / "plain", tmp_path / "fp4", load_in_4bit=True)
    other = words(fp4, tmp_path, "cft", quantization="nf4")
    assert "fp4 holds its weights in fp4 already; leave it out" in refused(other[0], *other[3:])
    assert "in fp4 already" in refused("eval", "--model", fp4, "--tasks", "mc_calib_arc", "--quantization", "nf4")


def test_missing_bitsandbytes_is_named_where_the_base_needs_it(four_bit_base, tmp_path, refused, monkeypatch):
    assert main(words(tmp_path / "plain", tmp_path / "t", "temperature", quantization="nf4")) == 0
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    fit = words(four_bit_base, tmp_path)
    for command in ((fit[0], *fit[3:]), ("bake", "--artifact", tmp_path / "t")):
        assert "this command needs bitsandbytes, not installed here" in refused(*command)


def test_base_of_which_no_plain_weights_can_be_made_is_neither_merged_nor_baked(tmp_path, refused):
    base = save_quantized(save_tiny(tmp_path / "plain", hidden=64), tmp_path / "int8", load_in_8bit=True)
    assert main(words(base, tmp_path / "adapter")) == 0
    assert main(words(base, tmp_path / "t", "temperature")) == 0
    assert json.loads((tmp_path / "t" / MANIFEST).read_text())["base_quantization"] == "int8"
    for command in (["merge", "--artifact", tmp_path / "adapter"], ["bake", "--artifact", tmp_path / "t"]):
        assert "holds its weights in int8, and transformers makes no plain weights" in refused(*command)


def test_4_bits_are_refused_where_bitsandbytes_knows_no_layer(tmp_path, refused):
    base = save_architecture("Falcon", tmp_path / "base")
    fit = words(base, tmp_path, quantization="nf4")
    assert "bitsandbytes knows no layer of a FalconForCausalLM" in refused(fit[0], *fit[3:])
    assert "knows no layer" in refused("eval", "--model", base, "--tasks", "mc_calib_arc", "--quantization", "nf4")


def test_checkpoint_in_4_bits_that_the_models_code_cannot_read_is_refused(tmp_path, refused):
    base = save_architecture("Mamba", tmp_path / "plain")
    four = save_quantized(base, tmp_path / "base", load_in_4bit=True)
    fit = words(four, tmp_path)
    assert "mixer.dt_proj in 4 bits, and the code of a MambaForCausalLM cannot read it so" in refused(fit[0], *fit[3:])
    assert np.isfinite(metrics(small_evaluation(tmp_path / "out", model=str(base)))["nll"])
