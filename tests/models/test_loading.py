import json
import shutil

import pytest
import torch
import transformers
from fitting import small_fit, words
from tiny import build_tokenizer

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.models.loading import load_base, load_config, resolved_precision, weights_dtype
from calibtune.spec import ModelSpec

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize("name", ["Bert", "Electra", "Roberta"])
def test_a_model_that_attends_to_later_tokens_is_refused(tmp_path, name):
    tokenizer = build_tokenizer()
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **SMALL)
    kind = "BertLMHeadModel" if name == "Bert" else f"{name}ForCausalLM"
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="attends to later tokens, not a causal language model"):
        load_base(ModelSpec(str(tmp_path), device="cpu"))


def test_gpt_neox_is_taken_though_its_configuration_calls_it_no_decoder(tmp_path):
    config = transformers.GPTNeoXConfig(vocab_size=64, **SMALL)
    assert config.is_decoder is False
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    assert load_config(ModelSpec(str(tmp_path))).model_type == "gpt_neox"


def test_an_encoder_whose_checkpoint_names_no_class_is_refused(tmp_path):
    transformers.BertConfig(vocab_size=64, **SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a bert, not a causal language model"):
        load_config(ModelSpec(str(tmp_path)))


def test_auto_is_float32_on_a_cpu_and_what_is_asked_for_elsewhere():
    assert resolved_precision(ModelSpec("m", device="cpu")) == "fp32"
    assert resolved_precision(ModelSpec("m", device="cpu", precision="bf16")) == "bf16"
    assert weights_dtype(ModelSpec("m", device="cpu")) == torch.float32


@pytest.mark.parametrize(("has_it", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bfloat16_on_a_gpu_that_has_it(monkeypatch, has_it, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_it)
    assert resolved_precision(ModelSpec("m", device="cuda")) == precision


@pytest.fixture
def mended(model, tmp_path, mirror):
    """Fit an adapter and a temperature on a copy of a model whose configuration says other shapes from then on."""
    base = shutil.copytree(model, tmp_path / "base")
    small_fit(base, tmp_path / "adapter", "cft", max_steps=1)
    small_fit(base, tmp_path / "t", "temperature")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))
    return tmp_path


def test_weights_of_other_shapes_are_refused_by_every_command(mended, capsys):
    model = ["--model", str(mended / "base")]
    asked = [*model, "--tasks", "mc_calib_arc"]
    commands = (
        ["eval", *asked],
        ["eval", *asked, "--backend", "hf-prefix"],
        ["eval", *asked, "--quantization", "nf4"],
        ["eval", "--artifact", str(mended / "adapter"), "--tasks", "mc_calib_arc"],
        words(mended / "base", mended / "out")[:1] + words(mended / "base", mended / "out")[3:],
        ["merge", "--artifact", str(mended / "adapter")],
        ["bake", "--artifact", str(mended / "t")],
        ["doctor", *asked],
    )
    for command in commands:
        output = [] if command[0] == "doctor" else ["--output", str(mended / "out")]
        assert main([*command, *output]) == 2, command
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "has 6 weights of other shapes than its config.json says, such as model.layers.0.mlp.down_proj" in said
        assert not (mended / "out").exists()
