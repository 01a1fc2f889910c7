"""RMS norms in one kernel against transformers'."""

import pytest
import torch
from packaging.version import Version
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
OLD = Version(torch.__version__) < Version("2.7")


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


def true_norm(norm, states):
    wide = states.double()
    return wide / (wide.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()


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


def late_epsilon(norm, states):
    return norm.weight * states / (states.pow(2).mean(-1, keepdim=True).sqrt() + norm.variance_epsilon)


def weight_and_one(norm, states):
    return LlamaRMSNorm.forward(norm, states) * (1 + norm.weight) / norm.weight


def another_argument(norm, states, gate):
    return LlamaRMSNorm.forward(norm, states) * gate


@pytest.mark.parametrize("formula", [late_epsilon, weight_and_one, another_argument])
def test_another_formula_behind_the_same_names_is_seen(formula):
    kind = type("OtherRMSNorm", (LlamaRMSNorm,), {"forward": formula, "__module__": LlamaRMSNorm.__module__})
    norm = kind(8)
    fuse_norms(norm)
    assert not replaced(norm)


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_a_gpus_kernel_gives_the_formula(dtype, rtol):
    norm = norm_of(dtype).cuda()
    states = 2 * torch.randn(64, 512, device="cuda", dtype=dtype)
    fuse_norms(norm)
    with torch.no_grad():
        found = norm(states)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), true_norm(norm, states), rtol=rtol, atol=1e-6)


@pytest.mark.skipif(OLD, reason="rounds twice as well before PyTorch 2.7")
def test_bfloat16_is_rounded_less():
    norm = norm_of(torch.bfloat16)
    states = (2 * torch.randn(64, 512)).bfloat16()
    true = true_norm(norm, states)
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
    model = torch.nn.Sequential(norm_of(torch.float32), norm_of(torch.float32))
    plain = model[1].forward
    model[1].forward = moved = lambda states: plain(states)  # as accelerate's, which first fetches the weights
    fuse_norms(model)
    assert replaced(model) == ["0", "1"]
    assert model[1].forward is moved
