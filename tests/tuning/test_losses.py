import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import build_model, build_tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GraniteConfig, GraniteForCausalLM

from calibtune.data.tokens import TokenExample, collate
from calibtune.models import heads
from calibtune.models.heads import MODEL_INPUTS, letter_log_likelihoods
from calibtune.recipe import make_recipe
from calibtune.tuning import losses
from calibtune.tuning.losses import calibration_loss, method_loss, sft2_loss

#: Prompts of different lengths with 2, 3 and 4 letters.
EXAMPLES = [
    TokenExample((270, 281, 300, 310, 320), (60, 61, 62, 63), 2, 0),
    TokenExample((270, 290, 301), (60, 61), 1, 1),
    TokenExample((271, 282, 303, 315, 327, 330, 341), (60, 61, 62), 0, 2),
]
TARGET = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.3, 0.0, 0.0], [0.2, 0.2, 0.6, 0.0]], dtype=torch.float64)


SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def model():
    return build_model(build_tokenizer()).double().eval()


@pytest.fixture(scope="module", params=["as they are", "capped", "scaled"])
def any_model(request, model):
    """Return models with plain, capped and scaled logits."""
    if request.param == "as they are":
        return model
    torch.manual_seed(0)
    if request.param == "capped":
        made = Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, final_logit_softcapping=0.1))
    else:
        made = GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=0.2))
    return made.double().eval()


def with_target(batch, method):
    """Add RCFT's target to a batch, as the trainer does."""
    return batch | {"target": TARGET[batch["row"], : batch["letter_ids"].shape[1]]} if method == "rcft" else batch


def recipe(method, **changes):
    return make_recipe({"method": method, "model": "m", "tasks": "t", **changes}, {}, "recipe")


def plain_log_probs(model, example):
    """Compute next-token log-probabilities of one question, without padding."""
    with torch.no_grad():
        return model(torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1).numpy()


def plain_loss(model, example, method, options):
    """Compute the paper's formulas for one question."""
    logs = plain_log_probs(model, example)
    letters = logs[-1, list(example.letter_ids)]
    letter = -letters[example.gold]
    question = [-logs[t, token] for t, token in enumerate(example.input_ids[1:])]
    if method == "cft":
        return letter
    if method == "label-smoothing":
        epsilon, count = 0.1, len(letters)
        weights = [1 - epsilon if j == example.gold else epsilon / (count - 1) for j in range(count)]
        return -sum(w * value for w, value in zip(weights, letters, strict=True))
    p = np.exp(letters) / np.exp(letters).sum()
    q = TARGET[example.row, : len(letters)].numpy()
    error = -sum(q * np.log(p)) if options.get("calibration_loss") == "cross-entropy" else sum((p - q) ** 2)
    weight = options.get("letter_weight", 1.0)
    if not options.get("sft", True):
        supervised = 0.0
    elif weight == "sum":
        supervised = sum(question) + letter
    elif weight == "token-mean":
        supervised = (sum(question) + letter) / (len(question) + 1)
    else:
        supervised = np.mean(question) + weight * letter
    return supervised + options["lambda"] * error


CASES = [
    ("cft", {}),
    ("label-smoothing", {}),
    *[("rcft", {"lambda": 1.8, "letter_weight": weight}) for weight in ("sum", "token-mean", 1.0, 2.5)],
    ("rcft", {"lambda": 4.0, "calibration_loss": "cross-entropy"}),
    ("rcft", {"lambda": 0.4, "sft": False}),
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("method", "options"), CASES)
def test_losses_equal_the_papers_formulas(any_model, method, options, side, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 5)  # several chunks
    model = any_model
    batch = collate(EXAMPLES, pad_id=1, side=side)
    loss, letters = method_loss(model, with_target(batch, method), recipe(method, **options))
    expected = np.mean([plain_loss(model, example, method, options) for example in EXAMPLES])
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    for row, example in zip(letters, EXAMPLES, strict=True):
        own = plain_log_probs(model, example)[-1, list(example.letter_ids)]
        assert row[: len(own)].tolist() == pytest.approx(own.tolist(), abs=1e-5)
        assert row[len(own) :].tolist() == [-math.inf] * (4 - len(own))


def test_padding_side_and_token_do_not_change_the_loss(model):
    inputs = [collate(EXAMPLES, pad, side) for pad in (1, 7) for side in ("left", "right")]
    found = [method_loss(model, batch, recipe("rcft", **{"lambda": 0.0}))[0].item() for batch in inputs]
    assert found == pytest.approx([found[0]] * 4, abs=1e-6)


@pytest.mark.parametrize("last", [True, False])
def test_bfloat16_logits_use_a_float32_softmax(last, monkeypatch):
    model, batch = Bigrams().bfloat16(), collate(EXAMPLES, pad_id=1)
    monkeypatch.setattr(heads, "output_layer", lambda m: m.output if last else None)
    exact = Bigrams()
    exact.table.data = model.table.data.double()
    options = {"lambda": 0.0, "letter_weight": "sum"}
    found = method_loss(model, batch, recipe("rcft", **options))[0]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(method_loss(exact, batch, recipe("rcft", **options))[0].item(), rel=1e-5)


def test_extra_padding_does_not_change_the_loss(model):
    batches = [collate(EXAMPLES, 1), collate(EXAMPLES, 1, few_shapes=True)]
    assert [batch["input_ids"].shape[1] for batch in batches] == [7, 8]
    found = [method_loss(model, batch, recipe("rcft", **{"lambda": 0.0}))[0].item() for batch in batches]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_logits_are_computed_in_chunks(model, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 4)
    assert losses.head_is_last(model, collate(EXAMPLES, 1))
    made = []
    with model.get_output_embeddings().register_forward_hook(lambda *parts: made.append(parts[2].shape[:-1].numel())):
        method_loss(model, collate(EXAMPLES, 1), recipe("rcft", **{"lambda": 0.0}))[0].backward()
    assert max(made) == 4
    assert sum(made) == 3 + 2 * 3 * 7  # answers once; all positions forward and again in the backward pass


def test_right_padding_needs_no_attention_mask():
    assert set(collate(EXAMPLES, 1, "right")) & set(MODEL_INPUTS) == {"input_ids"}


class Bigrams(torch.nn.Module):
    """Look up logits in a float64 table; transformers' models partly use float32."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(512, 512, dtype=torch.float64, generator=torch.manual_seed(0)))
        self.output = torch.nn.Identity()

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.output(self.table[input_ids]))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("method", "options"), CASES)
def test_gradients_equal_finite_differences(method, options, last, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 5)
    model, batch = Bigrams(), collate(EXAMPLES, pad_id=1)
    monkeypatch.setattr(heads, "output_layer", lambda _: model.output if last else None)

    def loss():
        return method_loss(model, with_target(batch, method), recipe(method, **options))[0]

    loss().backward()
    step = 1e-5
    # A letter's logit after the last token, another token's there, and one inside a question.
    for place in ((320, 62), (301, 400), (281, 300)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                model.table[place] += sign * step
                values.append(loss().item())
                model.table[place] -= sign * step
        gradient = model.table.grad[place].item()
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient, rel=1e-6, abs=1e-9)


def test_targets_get_no_gradient():
    letters = torch.tensor([[0.0, -1.0]], requires_grad=True)
    target = torch.tensor([[0.5, 0.5]], requires_grad=True)
    calibration_loss(letters, target).sum().backward()
    assert target.grad is None
    assert letters.grad.abs().sum() > 0


def test_absent_letters_have_zero_probability():
    values = letter_log_likelihoods(torch.zeros(1, 8), torch.tensor([[3, 5, -1]]))
    assert values.softmax(1)[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_question_means_of_no_and_one_token():
    letter, question, count = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 3.0, 6.0]), torch.tensor([0, 1, 3])
    assert sft2_loss(letter, question, count, 2.0).tolist() == [2.0, 5.0, 4.0]
    assert sft2_loss(letter, question, count, "token-mean").tolist() == [1.0, 2.0, 1.75]
    assert sft2_loss(letter, question, count, "sum").tolist() == [1.0, 4.0, 7.0]
