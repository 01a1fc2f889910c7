"""The output layer in float32: what it gives, its gradients, and the layers that are left alone."""

import pytest
import torch
import transformers
from architectures import save_architecture
from tiny import build_model, build_tokenizer

from calibtune.data.tokens import TokenExample, collate
from calibtune.errors import UserError
from calibtune.models import heads
from calibtune.models.heads import PreciseLinear, answer_logits, forward, output_layer

PROMPTS = [(301, 302, 303), (5, 6, 7, 8, 9), (44,)]
BATCH = collate([TokenExample(prompt, (60, 61, 62), 0, i) for i, prompt in enumerate(PROMPTS)], 0)


def states_at_the_answer(model):
    """The output layer's input at the answer, as the model itself computes it."""
    seen = []
    with output_layer(model).register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.no_grad():
        model(input_ids=BATCH["input_ids"])
    return seen[0][torch.arange(len(PROMPTS)), BATCH["answer"]]


@pytest.mark.parametrize("widened", [2**26, 1000])
def test_letters_of_a_bfloat16_model_are_read_in_float32(monkeypatch, widened):
    monkeypatch.setattr(heads, "WIDENED", widened)
    model = build_model(build_tokenizer()).to(torch.bfloat16).eval()
    head = output_layer(model)
    expected = states_at_the_answer(model).double() @ head.weight.double().T
    found = answer_logits(model, BATCH)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    rounded = model(input_ids=BATCH["input_ids"]).logits[torch.arange(3), BATCH["answer"]]
    assert (found - rounded).abs().max() > 1e-3
    assert head(states_at_the_answer(model)).dtype == torch.bfloat16  # the layer is as it was


@pytest.mark.parametrize("name", ["Gemma2", "OLMo2", "Mamba", "GPT-2"])
def test_a_cap_and_tied_embeddings_stay_as_the_model_has_them(tmp_path, name):
    folder = save_architecture(name, tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    expected = states_at_the_answer(model).double() @ output_layer(model).weight.double().T
    if cap := getattr(model.config, "final_logit_softcapping", None):
        expected = torch.tanh(expected / cap) * cap
    torch.testing.assert_close(answer_logits(model, BATCH).double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_a_float32_layer(monkeypatch):
    monkeypatch.setattr(heads, "WIDENED", 40)
    states, weight, bias = (torch.randn(shape).bfloat16().requires_grad_() for shape in ((3, 1, 8), (17, 8), (17,)))
    wide = [value.detach().double().requires_grad_() for value in (states, weight, bias)]
    factor = torch.randn(3, 1, 17)
    (PreciseLinear.apply(states, weight, bias) * factor).sum().backward()
    (torch.nn.functional.linear(*wide) * factor).sum().backward()
    for value, reference in zip((states, weight, bias), wide, strict=True):
        assert value.grad.dtype == torch.bfloat16
        torch.testing.assert_close(value.grad.double(), reference.grad, rtol=1e-2, atol=1e-2)


def test_an_adapters_gradients_flow_through_a_bfloat16_head():
    from calibtune.recipe import make_recipe
    from calibtune.tuning.trainable import add_adapter

    base = build_model(build_tokenizer()).to(torch.bfloat16)
    tuned = add_adapter(base, make_recipe({"method": "cft", "model": "m", "tasks": "t", "lora_dropout": 0.0}, {}))
    gradients = []
    for everywhere in (False, True):
        tuned.zero_grad()
        (-forward(tuned, BATCH, everywhere=everywhere)[0].log_softmax(-1)[:, 60].mean()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in tuned.parameters() if p.grad is not None]))
    assert gradients[0].norm() > 0
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


def test_an_adapted_head_is_left_alone():
    from peft import LoraConfig, get_peft_model

    base = build_model(build_tokenizer()).to(torch.bfloat16)
    tuned = get_peft_model(base, LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False)).eval()
    with torch.no_grad():
        plain = tuned(input_ids=BATCH["input_ids"]).logits[torch.arange(3), BATCH["answer"]].float()
        torch.testing.assert_close(answer_logits(tuned, BATCH), plain, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_a_four_bit_models_head_is_read_in_float32(model):
    pytest.importorskip("bitsandbytes")
    from calibtune.models.loading import load_base
    from calibtune.spec import ModelSpec

    loaded = load_base(ModelSpec(str(model), quantization="nf4", device="cpu")).eval()
    expected = states_at_the_answer(loaded).double() @ output_layer(loaded).weight.double().T
    torch.testing.assert_close(answer_logits(loaded, BATCH).double(), expected, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_round_the_letters():
    model = build_model(build_tokenizer()).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = states_at_the_answer(model).double() @ output_layer(model).weight.double().T
        found = answer_logits(model, BATCH)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_code_that_gives_other_places_is_refused(monkeypatch):
    model = build_model(build_tokenizer()).eval()
    plain = type(model).forward

    def last_alone(self, *args, **options):
        return plain(self, *args, **{**options, "logits_to_keep": 1})

    monkeypatch.setattr(heads, "output_layer", lambda _: None)
    monkeypatch.setattr(type(model), "forward", last_alone)
    with pytest.raises(UserError, match=r"gave logits of shape \(3, 1, .*not one row for each token"):
        answer_logits(model, BATCH)
