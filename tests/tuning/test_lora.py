"""LoRA's share, added within its product, against PEFT's own layers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from calibtune.tuning.lora import lora_in_product


class Products(TorchDispatchMode):
    """Count products that are added to a tensor in place."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten.addmm_.default
        return operation(*args, **kwargs or {})


def in_four_bits(model):
    """Replace a model's layers as bitsandbytes does when it loads one."""
    import bitsandbytes as bnb

    for name, layer in [*model.named_modules()]:
        if type(layer) is torch.nn.Linear and name.endswith("_proj"):
            sizes = layer.in_features, layer.out_features, layer.bias is not None
            four = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32)
            four.weight, four.bias = bnb.nn.Params4bit(layer.weight.data, quant_type="nf4"), layer.bias
            model.set_submodule(name, four.to("cpu"))
    return model


def tiny(bits=32, **options):
    """Return a Llama of two layers with an adapter, none of it 0, on its 14 linear layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, attention_bias=True, **sizes))
    config = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear"} | options
    model = get_peft_model(in_four_bits(model) if bits == 4 else model, LoraConfig(task_type="CAUSAL_LM", **config))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model.train()


def passed(model, active):
    """Return logits and gradients of a pass, and how many products were added in place."""
    torch.manual_seed(1)
    model.zero_grad()
    with lora_in_product(model, active), Products() as products:
        logits = model(torch.arange(20).view(2, 10)).logits
    logits.pow(2).sum().backward()
    return logits.detach(), [weight.grad for weight in model.parameters() if weight.requires_grad], products.count


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("bits", [32, 4])
def test_logits_and_gradients_are_pefts(bits, dropout):
    model = tiny(bits, lora_dropout=dropout)
    logits, gradients, none = passed(model, active=False)
    found, ours, products = passed(model, active=True)
    assert (none, products) == (0, 14)
    assert torch.allclose(found, logits, rtol=1e-4, atol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(ours, gradients, strict=True))


def test_a_model_without_its_adapter_is_the_base_and_layers_are_pefts_again_afterwards():
    model = tiny()
    ids = torch.arange(20).view(2, 10)
    with model.disable_adapter():
        base = model(ids).logits
    with lora_in_product(model), model.disable_adapter():
        assert torch.equal(model(ids).logits, base)
    assert passed(model, active=False)[2] == 0


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_layers_with_more_than_a_product_stay_pefts(options):
    assert passed(tiny(**options), active=True)[2] == 0


class Scaled(torch.nn.Linear):
    """A layer of a model's own code, which takes a second argument and returns a view."""

    def forward(self, states, scale=1.0):
        return (super().forward(states) * scale).view(-1)[:].view(*states.shape[:-1], -1)


def test_layers_of_another_class_than_torchs_stay_pefts():
    model = get_peft_model(torch.nn.Sequential(Scaled(4, 4)), LoraConfig(target_modules=["0"], r=2))
    states = torch.ones(2, 3, 4)
    with lora_in_product(model):
        assert torch.equal(
            model.base_model.model[0](states, scale=3.0),
            3 * Scaled.forward(model.base_model.model[0].base_layer, states),
        )


def test_layers_with_two_adapters_stay_pefts():
    model = tiny()
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    assert passed(model, active=True)[2] == 0


def test_a_bfloat16_base_is_served_under_autocast_and_left_to_peft_without_it():
    model = tiny()
    for weight in model.parameters():
        weight.data = weight.data / 10 if weight.requires_grad else weight.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits, gradients, _ = passed(model, active=False)
        found, ours, products = passed(model, active=True)
    assert products == 14
    assert (found - logits).norm() < 0.01 * logits.norm()
    apart = [a - b for a, b in zip(ours, gradients, strict=True)]
    assert torch.nn.utils.get_total_norm(apart) < 0.02 * torch.nn.utils.get_total_norm(gradients)
    logits, _, _ = passed(model, active=False)
    found, _, products = passed(model, active=True)
    assert products == 0
    assert torch.equal(found, logits)
