"""One idea at a time left out of a fit, or put into it: what ``fit_speed.py`` takes behind a way's ``+``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

from calibtune.tuning.trainer import training_arguments


@contextmanager
def in_one_piece(_: Any) -> Iterator[None]:
    """L_SFT2 from all of a batch's logits at once, kept for the backward pass."""
    with (
        patch("calibtune.tuning.losses.CHUNK", 2**40),
        patch("calibtune.tuning.losses.checkpoint", lambda f, *args, **_: f(*args)),
    ):
        yield


def unfused(*args: Any) -> Any:
    """Trainer's arguments with an AdamW that is not one kernel."""
    arguments = training_arguments(*args)
    arguments.optim = "adamw_torch"
    return arguments


def replaced(name: str, value: Any) -> Callable[[Any], AbstractContextManager]:
    """Something of calibtune's or the benchmark's replaced."""
    return lambda _: patch(name, value)


#: By name: given the base model, what surrounds the measurement.
DEPARTURES: dict[str, Callable[[Any], AbstractContextManager]] = {
    "casts": replaced("calibtune.tuning.trainer.disable_input_dtype_casting", lambda *_, **__: nullcontext()),
    "alllogits": replaced(
        "calibtune.models.heads.output_layer", lambda model: None
    ),  # at every place, not the answer's
    "onepiece": in_one_piece,
    "random": replaced("calibtune.data.training_set.STRETCH", 1),  # batches of random lengths
    "whole": replaced("calibtune.tuning.trainer.most_tokens", lambda *_: math.inf),  # steps not cut into parts
    "unfused": replaced("speed_ways.training_arguments", unfused),  # the optimizer
    "noprefix": replaced("calibtune.tuning.estep._shared", lambda examples: 0),
}
#: By name: fields of the recipe.
FIELDS = {"checkpointing": {"gradient_checkpointing": True}, "dropout": {"lora_dropout": 0.05}}
#: What stays in the base model once it is there.
LASTING = {"liger"}
NAMES = {*DEPARTURES, *FIELDS, *LASTING}


@contextmanager
def departing(base: Any, names: list[str]) -> Iterator[None]:
    """All that the names say, for as long as it is open."""
    with ExitStack() as stack:
        for name in names:
            if name in DEPARTURES:
                stack.enter_context(DEPARTURES[name](base))
        yield
