"""Estimate the hours and the memory of commands, before anything runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibtune.recipe import Recipe, load_recipe, make_recipe
from calibtune.spec import ModelSpec
from calibtune.steps import Step
from harness_ext.orders import Orders

#: Tokens of a prompt, and of a pair of responses with its instruction, on average.
PROMPT, PAIR = 150, 800
#: Questions to train on, to evaluate on in each task, and pairs to win.
TRAIN, TEST, PAIRS = 3000, 2000, 1000
#: Shares of the device's own rate of matrix products that training and scoring reach (docs/speed.md).
TRAINING, SCORING = 0.35, 0.33
#: Seconds that a layer takes at least, however small the batch: its kernels launched one by one in a forward pass, and
#: run as a CUDA graph forward and backward.
LAUNCH, LAUNCH_BOTH = 1e-3, 2e-3
#: Seconds of a command that are not its work: imports, loading the model.
START = 30
#: Bytes of activations for each token, layer and hidden unit, and for each token and entry of the vocabulary.
ACTIVATION, LOGIT = 27, 8


@dataclass(frozen=True)
class Model:
    """Hold what an estimate needs to know about a model and the device."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int
    #: Floating-point operations a second of a large matrix product.
    rate: float


def inspect(spec: ModelSpec) -> Model:
    """Read a model's configuration, count its parameters without its weights, and time the device.

    Raises:
        UserError: The model does not exist, or it is not a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from calibtune.models.loading import load_config, resolved_precision

    config = load_config(spec)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
        parameters = sum(weight.numel() for weight in model.parameters())
    text = config.get_text_config()
    dtype = torch.bfloat16 if resolved_precision(spec) == "bf16" else torch.float32
    return Model(parameters, text.num_hidden_layers, text.hidden_size, text.vocab_size, _rate(dtype))


def _rate(dtype: Any) -> float:
    """Time matrix products on the device."""
    import torch

    from calibtune.models.loading import found_device

    size = 4096 if torch.cuda.is_available() else 512
    a = torch.randn(size, size, device=found_device(), dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        # Reading a value waits for the device.
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def estimate(step: Step, model: Model) -> tuple[float, float]:
    """Return the seconds and the GiB of a step; NaN where they are not known."""
    if step.words[0] not in ("fit", "eval"):
        return (START, 1.0) if step.words[0] in ("report", "doctor") else (float("nan"), float("nan"))
    flags = dict(zip(step.words[1:], step.words[2:], strict=False))
    seconds, memory = _fit(_recipe(flags), model) if step.words[0] == "fit" else _evaluation(step, flags, model)
    return START + seconds, memory / 2**30


def _evaluation(step: Step, flags: Mapping[str, str], model: Model) -> tuple[float, float]:
    """Return seconds and bytes of an evaluation."""
    pairs = "ultrafeedback_winrate" in step.tasks
    each = min(TEST, int(flags.get("--limit", TEST))) * _passes(flags.get("--orders", "1"))
    count, length, passed = (PAIRS, PAIR, 2 * PAIR) if pairs else (each * len(step.tasks), PROMPT, PROMPT)
    memory = _weights(model, flags.get("--quantization")) + 64 * passed * (model.hidden * 8 + model.vocabulary)
    return _scoring(model, count, length, 16), memory


def _fit(recipe: Recipe, model: Model) -> tuple[float, float]:
    """Return seconds and bytes of a fit."""
    weights = _weights(model, recipe.quantization)
    if recipe.method == "temperature":
        return _scoring(model, recipe.held_out * _passes(recipe.orders), PROMPT, 16), weights + 2**30
    if recipe.method == "auto":
        from calibtune.tuning.auto import members

        each = [_fit(member, model) for member in members(recipe)]
        on_top = _scoring(model, recipe.held_out, PROMPT, 16)
        return sum(seconds for seconds, _ in each) + on_top, max(memory for _, memory in each)
    rows, tokens = TRAIN - recipe.held_out, recipe.batch_size * PROMPT
    batch = max(LAUNCH_BOTH * model.layers, tokens * 4 * model.parameters / (TRAINING * model.rate))
    epochs = recipe.epochs or 1
    seconds = epochs * rows / recipe.batch_size * batch
    seconds += (epochs + 1) * _scoring(model, rows if recipe.e_step == "epoch" else recipe.held_out, PROMPT, 16)
    # The largest batch has twice an average one's tokens; RCFT alone reads the logits of all of them.
    largest = 2 * tokens
    memory = weights + 16 * _adapter(model, recipe.rank) + ACTIVATION * largest * model.layers * model.hidden
    memory += LOGIT * largest * model.vocabulary if recipe.method == "rcft" else 0
    return seconds, memory


def _weights(model: Model, quantization: str | None) -> float:
    """Return the bytes of the model's weights."""
    return model.parameters * (0.75 if quantization == "nf4" else 2)


def _passes(orders: Orders | str) -> int:
    """Return the passes that a question of four options takes in some orders."""
    return 4 if orders == "all" else min(int(orders), 4)


def _recipe(flags: Mapping[str, str]) -> Recipe:
    names = ("method", "lambda", "quantization", "adapters", "orders")
    given = {name: flags[f"--{name}"] for name in names if f"--{name}" in flags}
    config = load_recipe(Path(flags["--config"])) if "--config" in flags else {}
    return make_recipe({**config, "model": flags["--model"], "tasks": "mc_calib_indomain", **given}, {})


def _scoring(model: Model, questions: int, tokens: int, batch: int) -> float:
    one = max(LAUNCH * model.layers, batch * tokens * 2 * model.parameters / (SCORING * model.rate))
    return questions / batch * one


def _adapter(model: Model, rank: int) -> float:
    """Return the adapter's weights: seven layers of about 3 hidden units in and out, by rank."""
    return 7 * model.layers * rank * 3 * model.hidden
