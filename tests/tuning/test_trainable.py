import pytest
import torch
from fitting import small_fit, small_recipe
from tiny import build_tokenizer, save_tiny
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from calibtune.errors import UserError
from calibtune.models.adapters import load_adapter
from calibtune.models.loading import load_base
from calibtune.tuning.trainable import add_adapter, expert_parameters, weight_shares

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
}
MIXTURES = {
    "Mixtral": (MixtralConfig, MixtralForCausalLM, {}),
    "Qwen3-MoE": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"num_experts": 4, "moe_intermediate_size": 16}),
    "GPT-OSS": (GptOssConfig, GptOssForCausalLM, {}),
}


@pytest.fixture(params=MIXTURES)
def mixture(request, tmp_path):
    """Folder of a tiny mixture of experts."""
    config, kind, more = MIXTURES[request.param]
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    kind(config(vocab_size=len(tokenizer), **SMALL, **more)).save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def test_experts_get_an_adapter_that_is_trained_and_loaded(mixture, tmp_path, mirror):
    small_fit(mixture, tmp_path / "adapter", "cft", max_steps=2)
    recipe = small_recipe(mixture, "cft")
    tuned = load_adapter(load_base(recipe.spec), tmp_path / "adapter")
    experts = {n: p for n, p in tuned.named_parameters() if ".experts" in n and "lora_B" in n}
    assert len(experts) == 2
    assert all(weight.abs().max() > 0 for weight in experts.values())


def test_dropout_on_experts_is_refused(mixture):
    recipe = small_recipe(mixture, "cft", lora_dropout=0.1)
    with pytest.raises(UserError, match=r"--lora-dropout is 0\.1, and PEFT has no dropout for the fused experts"):
        add_adapter(load_base(recipe.spec), recipe)


def test_a_dense_model_has_no_experts(model):
    assert expert_parameters(AutoModelForCausalLM.from_pretrained(model)) == []


def test_the_share_of_trained_and_of_four_bit_weights_is_said(tmp_path):
    folder = save_tiny(tmp_path / "model", hidden=64)
    recipe = small_recipe(folder, "cft", quantization="nf4")
    base = load_base(recipe.spec)
    linear = sum(2 * p.numel() for p in base.parameters() if type(p).__name__ == "Params4bit")
    total = sum(p.numel() for p in load_base(small_recipe(folder, "cft").spec).parameters())
    said = weight_shares(add_adapter(base, recipe))
    assert f"of the base's {total:,}; {100 * linear / total:.1f} % of the base's are held in 4 bits" in said
    assert weight_shares(torch.nn.Linear(2, 3)) == "all 9 weights are trained"
