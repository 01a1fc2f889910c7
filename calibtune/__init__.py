"""calibtune: measure and mend the calibration of aligned language models.

Importing it loads neither torch nor numpy: a name is imported when it is first used.

Example:
    >>> import calibtune as ct
    >>> log_probs = [[-0.1, -2.4], [-0.2, -1.7], [-0.1, -2.4], [-1.9, -0.2]]
    >>> t = ct.fit_temperature(log_probs, labels=[0, 1, 0, 1])
    >>> low, high = t.interval
    >>> low < t.value < high
    True
    >>> ct.metrics.nll(t.apply(log_probs), [0, 1, 0, 1]) < ct.metrics.nll(log_probs, [0, 1, 0, 1])
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibtune import metrics
    from calibtune.api import evaluate, fit, leaderboard, load, load_samples, mend, regime, report
    from calibtune.artifacts.manifest import Artifact
    from calibtune.errors import UserError, WorkFailed
    from calibtune.evaluation.evaluate import Evaluation
    from calibtune.mending.run import Mended
    from calibtune.recipe import Recipe
    from calibtune.results.samples import Samples
    from calibtune.tuning.temperature import Temperature, fit_temperature

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Evaluation",
    "Mended",
    "Recipe",
    "Samples",
    "Temperature",
    "UserError",
    "WorkFailed",
    "evaluate",
    "fit",
    "fit_temperature",
    "leaderboard",
    "load",
    "load_samples",
    "mend",
    "metrics",
    "regime",
    "report",
]

#: Where each public name lives.
_HOMES = {
    "Artifact": "calibtune.artifacts.manifest",
    "Evaluation": "calibtune.evaluation.evaluate",
    "Mended": "calibtune.mending.run",
    "Recipe": "calibtune.recipe",
    "Samples": "calibtune.results.samples",
    "Temperature": "calibtune.tuning.temperature",
    "UserError": "calibtune.errors",
    "WorkFailed": "calibtune.errors",
    "evaluate": "calibtune.api",
    "fit": "calibtune.api",
    "fit_temperature": "calibtune.tuning.temperature",
    "leaderboard": "calibtune.api",
    "load": "calibtune.api",
    "load_samples": "calibtune.api",
    "mend": "calibtune.api",
    "regime": "calibtune.api",
    "report": "calibtune.api",
}


if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has any name

    def __getattr__(name: str) -> Any:
        if name == "metrics":
            return importlib.import_module("calibtune.metrics")
        if name not in _HOMES:
            raise AttributeError(f"module 'calibtune' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
