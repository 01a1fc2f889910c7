"""New adapters, and 4-bit scales unpacked for training on a GPU."""

import numpy as np
import pytest
import torch
from architectures import save_architecture
from evaluating import metrics, small_evaluation
from fitting import adapter_weights, small_fit, small_recipe, words
from peft.tuners.lora import LoraLayer
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

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.models.adapters import load_adapter
from calibtune.models.loading import load_base
from calibtune.tuning import trainable
from calibtune.tuning.trainable import add_adapter, expert_parameters, unfit_layers, weight_shares


@pytest.fixture
def four_bit(tmp_path):
    return small_recipe(save_tiny(tmp_path / "model", hidden=64), "cft", quantization="nf4")


def scales(model):
    """Return whether the 4-bit layers' scales are packed, as a set."""
    states = [getattr(getattr(layer, "weight", None), "quant_state", None) for layer in model.modules()]
    return {state.nested for state in states if state is not None}


@pytest.mark.parametrize(
    ("kind", "environment", "packed"),
    [
        ("cuda", {}, False),
        ("cuda", {"ACCELERATE_USE_FSDP": "true"}, True),
        ("cuda", {"ACCELERATE_USE_DEEPSPEED": "true"}, True),
        ("cpu", {}, True),
    ],
)
def test_4_bit_scales_are_unpacked_on_gpu_unless_sharded(four_bit, monkeypatch, kind, environment, packed):
    base = load_base(four_bit.spec)
    monkeypatch.setattr(trainable, "_with_adapter", lambda model, _: model)
    monkeypatch.setattr(trainable, "device", lambda name: torch.device(kind))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert scales(add_adapter(base, four_bit)) == {packed}


def test_an_adapter_is_written_without_pefts_card(model, tmp_path):
    tuned = add_adapter(AutoModelForCausalLM.from_pretrained(model), small_recipe(model, "cft"))
    tuned.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_adapter_covers_every_linear_layer_except_the_head(model):
    tuned = add_adapter(AutoModelForCausalLM.from_pretrained(model), small_recipe(model, "cft"))
    names = [name for name, module in tuned.named_modules() if isinstance(module, LoraLayer)]
    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_unpacked_scales_train_the_same_adapter_on_gpu(tmp_path, mirror, monkeypatch, precision):
    options = {"device": "cuda", "precision": precision, "quantization": "nf4", "learning_rate": 1e-4}
    folder = save_tiny(tmp_path / "model", hidden=64)
    unpacked = small_fit(folder, tmp_path / "unpacked", "rcft", **options)
    monkeypatch.setattr(trainable, "unpack_scales", lambda layer: None)
    packed = small_fit(folder, tmp_path / "packed", "rcft", **options)
    assert unpacked.after["nll"] == pytest.approx(packed.after["nll"], rel=1e-4 if precision == "fp32" else 1e-2)


def test_bf16_keeps_adapter_and_rotary_frequencies_in_float32(model, tmp_path, mirror):
    from calibtune.models.loading import load_base
    from calibtune.tuning.trainable import add_adapter

    recipe = small_recipe(model, "cft", precision="bf16")
    base = load_base(recipe.spec)
    frequencies = base.model.rotary_emb.inv_freq
    tuned = add_adapter(base, recipe)
    assert frequencies.dtype == torch.float32
    assert frequencies[1].item() == pytest.approx(10000 ** (-2 / 8), rel=1e-6)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in tuned.parameters() if not p.requires_grad} == {torch.bfloat16}
    artifact = small_fit(model, tmp_path / "out", "cft", precision="bf16", max_steps=1)
    assert np.isfinite(artifact.after["nll"])


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
    """Return the folder of a tiny mixture of experts."""
    config, kind, more = MIXTURES[request.param]
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    kind(config(vocab_size=len(tokenizer), **SMALL, **more)).save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def test_expert_adapters_are_trained_and_loaded(mixture, tmp_path, mirror):
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


def test_dense_model_has_no_experts(model):
    assert expert_parameters(AutoModelForCausalLM.from_pretrained(model)) == []


#: Architecture -> the linear layers that an adapter is on, and those that it cannot be on.
ADAPTED = {
    "Mamba": ({"in_proj"}, {"x_proj", "dt_proj", "out_proj"}),
    "Falcon-H1": ({"q_proj", "o_proj", "in_proj", "up_proj"}, {"out_proj"}),
    "Llama4": ({"q_proj", "o_proj", "experts", "down_proj"}, {"router"}),
    "Falcon": ({"query_key_value", "dense", "dense_h_to_4h"}, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTED)
def test_adapter_leaves_out_layers_that_it_cannot_be_on_and_is_merged(tmp_path, mirror, caplog, name):
    base, (there, missing) = save_architecture(name, tmp_path / "base"), ADAPTED[name]
    with caplog.at_level("INFO"):
        assert main(words(base, tmp_path / "adapter", "rcft")) == 0
    said = f"no adapter on {', '.join(sorted(missing))}: " if missing else "no adapter on"
    assert (said in caplog.text) == bool(missing)
    weights = adapter_weights(tmp_path / "adapter")
    trained = {part for name, values in weights.items() if values.any() for part in name.split(".")}
    assert there <= trained
    assert not missing & trained
    assert main(["merge", "--artifact", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]) == 0
    apart = metrics(small_evaluation(tmp_path / "apart", artifact=tmp_path / "adapter"))
    merged = metrics(small_evaluation(tmp_path / "out", model=str(tmp_path / "merged")))
    assert merged == pytest.approx(apart, abs=1e-4)


def test_layer_that_gives_more_than_a_product_is_unfit():
    class Router(torch.nn.Linear):
        def forward(self, states):
            logits = super().forward(states)
            return logits, logits.topk(1)

    class Grouped(torch.nn.Linear):
        def forward(self, states):
            return super().forward(states).view(2, -1)

    class Mixer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.called = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def forward(self, states):
            return self.called(states @ self.read.weight.T + self.called.weight.dtype.itemsize)

    layers = {"router": Router(4, 4), "grouped": Grouped(4, 4), "mixer": Mixer(), "plain": torch.nn.Linear(4, 4)}
    assert unfit_layers(torch.nn.ModuleDict(layers)) == ["grouped", "mixer.read", "router"]


def test_weight_shares_count_trained_and_4_bit_weights(tmp_path):
    folder = save_tiny(tmp_path / "model", hidden=64)
    recipe = small_recipe(folder, "cft", quantization="nf4")
    base = load_base(recipe.spec)
    linear = sum(2 * p.numel() for p in base.parameters() if type(p).__name__ == "Params4bit")
    total = sum(p.numel() for p in load_base(small_recipe(folder, "cft").spec).parameters())
    said = weight_shares(add_adapter(base, recipe))
    assert f"of the base's {total:,}; {100 * linear / total:.1f} % of the base's are held in 4 bits" in said
    assert weight_shares(torch.nn.Linear(2, 3)) == "all 9 weights are trained"
