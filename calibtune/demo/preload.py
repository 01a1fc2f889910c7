"""Import what the demo's commands need; the processes that run them are forked from one that imported this."""

from __future__ import annotations

import atexit
import gc
import importlib

from calibtune.__main__ import quieten
from calibtune.processes import GARBAGE

MODULES = (
    "calibtune.evaluation.evaluate",
    "calibtune.tuning.fit",
    "calibtune.tuning.temperature",
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
# Else nanobind, Triton's binding, lists at the end as leaked what was not searched.
atexit.register(gc.unfreeze)
