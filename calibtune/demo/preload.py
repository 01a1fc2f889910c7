"""Import what the demo's commands need; the processes that run them are forked from one that imported this."""

from __future__ import annotations

import atexit
import gc
import importlib
import os

from calibtune.__main__ import quieten
from calibtune.processes import GARBAGE

MODULES = (
    "calibtune.evaluation.evaluate",
    "calibtune.tuning.fit",
    "calibtune.tuning.trainer",
    "calibtune.artifacts.card",
    "harness_ext.world.questions",
    "transformers.models.llama.modeling_llama",
)

quieten()
gc.set_threshold(GARBAGE)
for name in MODULES:
    importlib.import_module(name)
# What is imported stays: the processes need not search it for garbage, and share its memory.
gc.freeze()
# What was not searched is not taken apart either: nanobind, Triton's binding, would list it as leaked.
atexit.register(os._exit, 0)
