"""RMS norms in one kernel against transformers'."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from calibtune.models.norms import fuse_norms

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
IDS = torch.arange(12).view(2, 6)


def model_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZES)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data = 1 + 0.3 * torch.randn(weight.shape)
    return model


def norm_of(dtype):
    norm = LlamaRMSNorm(512).to(dtype)
    norm.weight.data = torch.randn(512).to(dtype)
    return norm


def replaced(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize(("config", "norms"), [(LlamaConfig, 5), (Qwen3Config, 9)])
def test_logits_in_float32_stay_and_every_norm_is_replaced(config, norms):
    model = model_of(config)
    with torch.no_grad():
        before = model(IDS).logits
        fuse_norms(model)
        torch.testing.assert_close(model(IDS).logits, before, rtol=1e-5, atol=1e-6)
    assert len(replaced(model)) == norms


def test_norms_by_another_formula_stay_as_they_are():
    model = model_of(Gemma2Config)
    fuse_norms(model)
    assert not replaced(model)


def test_an_epsilon_added_elsewhere_is_seen():
    class LateRMSNorm(LlamaRMSNorm):
        def forward(self, states):
            return self.weight * states / (states.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)

    LateRMSNorm.__module__ = LlamaRMSNorm.__module__
    norm = LateRMSNorm(8)
    fuse_norms(norm)
    assert not replaced(norm)


def test_bfloat16_is_rounded_less():
    norm = norm_of(torch.bfloat16)
    states = (2 * torch.randn(64, 512)).bfloat16()
    wide = states.double()
    true = wide / (wide.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()
    with torch.no_grad():
        twice = (norm(states) - true).abs().mean()
        fuse_norms(norm)
        once = (norm(states) - true).abs().mean()
    assert once < 0.9 * twice


def test_weights_in_another_precision_give_transformers_result():
    norm = norm_of(torch.float32)
    states = torch.randn(4, 512).bfloat16()
    with torch.no_grad():
        before = norm(states)
        fuse_norms(norm)
        found = norm(states)
    assert found.dtype == before.dtype == torch.float32
    assert torch.equal(found, before)


def test_a_norm_whose_weights_are_moved_for_each_pass_is_left_alone():
    norm = norm_of(torch.float32)
    norm.forward = moved = lambda states: states
    fuse_norms(norm)
    assert norm.forward is moved
