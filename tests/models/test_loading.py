import pytest
import torch
import transformers
from tiny import build_tokenizer

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
