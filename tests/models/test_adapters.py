"""The fused linear layer of an adapter against PEFT's own."""

import pytest
import torch
from fitting import METHODS, other_architecture, same_weights, small_fit, small_recipe
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from calibtune.models import loading as modeling
from calibtune.models.adapters import LoraLinear, _is_plain, base_weight, fuse, unpack_scales
from calibtune.models.loading import nf4
from calibtune.tuning import crossfit
from calibtune.tuning import fit as fit_module

IDS = torch.randint(200, (3, 11), generator=torch.Generator().manual_seed(0))


def adapted(folder, quantized=False, dtype=torch.float32, **options):
    """A model with an adapter whose second matrix is not zero."""
    four_bit = {"quantization_config": nf4(dtype)} if quantized else {}
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"}, **four_bit)
    base.requires_grad_(False)
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # see calibtune.models.loading.load_base
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def logits_and_gradients(model, autocast=False):
    """Logits, and all gradients of their loss in one vector."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(input_ids=IDS, labels=IDS, use_cache=False)
    model.zero_grad()
    output.loss.backward()
    return output.logits.detach(), torch.cat([w.grad.flatten() for w in model.parameters() if w.requires_grad])


def apart(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("quantized", [False, True], ids=["fp32", "nf4"])
@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_the_fused_layer_has_pefts_logits_and_gradients(tmp_path, name, quantized):
    folder = save_tiny(tmp_path, hidden=64) if name == "Llama" else other_architecture(name, tmp_path)
    plain = logits_and_gradients(adapted(folder, quantized))
    model = adapted(folder, quantized)
    assert fuse(model) == 14
    states = [
        getattr(layer.base_layer.weight, "quant_state", None)
        for layer in model.modules()
        if hasattr(layer, "base_layer")
    ]
    assert not any(state is not None and state.nested for state in states)
    fused = logits_and_gradients(model)
    assert apart(fused[0], plain[0]) < 1e-6
    assert apart(fused[1], plain[1]) < 1e-5


def test_scales_unpacked_once_leave_the_weights_as_they_were(tmp_path):
    (layer,) = [module for name, module in adapted(save_tiny(tmp_path, hidden=64), quantized=True).named_modules()
                if name.endswith("0.mlp.down_proj.base_layer")]  # fmt: skip
    before = base_weight(layer, torch.float32)
    assert layer.weight.quant_state.nested
    unpack_scales(layer)
    assert not layer.weight.quant_state.nested
    assert torch.equal(base_weight(layer, torch.float32), before)
    unpack_scales(layer)  # once is enough
    assert torch.equal(base_weight(layer, torch.float32), before)


def test_under_autocast_the_fused_layer_is_as_near_to_float32_as_pefts(model):
    exact = logits_and_gradients(adapted(model))[1]
    plain, fused = adapted(model, dtype=torch.bfloat16), adapted(model, dtype=torch.bfloat16)
    fuse(fused)
    errors = [apart(logits_and_gradients(each, autocast=True)[1], exact) for each in (plain, fused)]
    assert errors[1] < 1.2 * errors[0] < 0.1


def test_without_autocast_a_bfloat16_base_scores_as_peft_does(model):
    # As a fit measures its end, and as the harness evaluates it.
    plain, fused = adapted(model, dtype=torch.bfloat16), adapted(model, dtype=torch.bfloat16)
    fuse(fused)
    assert torch.equal(fused(IDS).logits, plain(IDS).logits)


def test_no_rows_at_all_give_none(model):
    # A mixture's expert that no token is sent to.
    fused = adapted(model)
    fuse(fused)
    layer = fused.base_model.model.model.layers[0].mlp.down_proj
    x = torch.zeros(0, layer.in_features, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.shape == (0, layer.out_features)
    assert x.grad.shape == x.shape


def test_the_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 3).double().requires_grad_(False)
    x, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 5), (2, 5), (3, 2)))
    assert torch.autograd.gradcheck(lambda x, a, b: LoraLinear.apply(x, a, b, base, 1.7), (x, a, b))


def test_checkpointed_layers_have_the_same_gradients(model):
    plain, fused = adapted(model), adapted(model)
    fuse(fused)
    fused.enable_input_require_grads()
    fused.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert apart(logits_and_gradients(fused)[1], logits_and_gradients(plain)[1]) < 1e-5


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_lora_stays_pefts(model, options):
    assert fuse(adapted(model, **options)) == 0


def test_two_adapters_at_once_and_trained_bases_stay_pefts(model):
    two = adapted(model)
    two.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    two.set_adapter("other")
    layers = [layer for layer in two.modules() if isinstance(layer, LoraLayer)]
    assert [_is_plain(layer) for layer in layers].count(True) == 2  # elsewhere the active one has no weights
    two.set_adapter("default")
    assert fuse(two) == 14
    two.base_model.set_adapter(["default", "other"])
    assert two(IDS).logits.isfinite().all()  # also where the second came later
    assert fuse(two) == 0
    trained = adapted(model)
    trained.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.requires_grad_(True)
    assert fuse(trained) == 13


def test_rows_with_adapters_of_their_own_are_left_to_peft(model):
    fused, plain = adapted(model).eval(), adapted(model).eval()
    fuse(fused)
    names = ["__base__", "default", "__base__"]
    assert torch.equal(*(each(input_ids=IDS, adapter_names=names).logits for each in (fused, plain)))


def test_layers_of_another_kind_stay_pefts(tmp_path):
    assert fuse(adapted(other_architecture("GPT2", tmp_path), fan_in_fan_out=True)) == 0


def test_a_switched_off_or_merged_adapter_is_left_to_peft(model):
    fused, plain = adapted(model), adapted(model)
    fuse(fused)
    with fused.disable_adapter(), plain.disable_adapter():
        assert torch.equal(fused(IDS).logits, plain(IDS).logits)
    with_adapter = fused(IDS).logits
    fused.merge_adapter()
    assert apart(fused(IDS).logits, with_adapter) < 1e-5
    fused.unmerge_adapter()
    assert apart(fused(IDS).logits, with_adapter) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_with_fused_layers_ends_in_the_adapter_of_one_without(model, tmp_path, mirror, monkeypatch, method):
    plain = small_fit(model, tmp_path / "plain", method)
    counts = []

    def fused(base, recipe):
        tuned = modeling.add_adapter(base, recipe)
        counts.append(fuse(tuned))
        return tuned

    monkeypatch.setattr(fit_module, "add_adapter", fused)
    found = small_fit(model, tmp_path / "fused", method)
    assert counts == [14]
    assert same_weights(tmp_path / "plain", tmp_path / "fused", rtol=1e-3, atol=1e-5)
    assert found.after == pytest.approx(plain.after, rel=1e-4)


def test_cross_fitted_folds_with_fused_layers_leave_nothing_behind(tmp_path, mirror, monkeypatch):
    folder = save_tiny(tmp_path / "model", hidden=64)
    options = {"e_step_rows": "cross-fitted", "quantization": "nf4", "learning_rate": 1e-3}
    small_fit(folder, tmp_path / "plain", "rcft", **options)
    counts = []

    def fused(base, recipe):
        left = [module for module in base.modules() if "forward" in vars(module) or isinstance(module, LoraLayer)]
        counts.append((len(left), fuse(tuned := modeling.add_adapter(base, recipe))))
        return tuned

    monkeypatch.setattr(fit_module, "add_adapter", fused)
    monkeypatch.setattr(crossfit, "add_adapter", fused)
    small_fit(folder, tmp_path / "fused", "rcft", **options)
    assert counts == [(0, 14)] * 3
    assert same_weights(tmp_path / "plain", tmp_path / "fused", rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "environment", "is_fused"),
    [
        ("cuda", {}, {}, True),
        ("cuda", {"compile": True}, {}, False),
        ("cuda", {}, {"ACCELERATE_USE_FSDP": "true"}, False),
        ("cuda", {}, {"ACCELERATE_USE_DEEPSPEED": "true"}, False),
        ("cpu", {}, {}, False),
    ],
)
def test_adapters_are_fused_on_a_gpu_unless_compiled_or_sharded(
    model, monkeypatch, kind, changes, environment, is_fused
):
    base = AutoModelForCausalLM.from_pretrained(model)
    monkeypatch.setattr(modeling, "device", lambda recipe: torch.device(kind))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tuned = modeling.add_adapter(base, small_recipe(model, "cft", **changes))
    assert any("forward" in vars(module) for module in tuned.modules()) == is_fused


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_fused_layers_score_and_train_as_pefts(tmp_path, mirror, monkeypatch, precision, quantization):
    options = {"device": "cuda", "precision": precision, "quantization": quantization, "learning_rate": 1e-4}
    folder = save_tiny(tmp_path / "model", hidden=64)
    fused = small_fit(folder, tmp_path / "fused", "rcft", **options)
    monkeypatch.setattr(modeling, "fuse", lambda model: 0)
    plain = small_fit(folder, tmp_path / "plain", "rcft", **options)
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.1, "atol": 1e-4}
    assert same_weights(tmp_path / "plain", tmp_path / "fused", **tolerance)
    assert fused.after["nll"] == pytest.approx(plain.after["nll"], rel=1e-5 if precision == "fp32" else 1e-2)
