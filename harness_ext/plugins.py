"""Our metrics for any multiple-choice task, by name, where the harness discovers plug-ins (``pyproject.toml``).

On lm_eval 0.5 a task of any class can then list ``metric: conf_ece_10``; its options are taken for letters.
"""

import functools
import types
from typing import Any

import numpy as np
from lm_eval.api.registry import register_aggregation, register_metric

from harness_ext import metrics
from harness_ext.calibration import letter_log_softmax
from harness_ext.letters import Letter
from harness_ext.registry import MEANS, METRICS


def of_question(name: str, references: int, predictions: Any) -> Any:
    """Return a metric of one question as lm_eval 0.5 asks for it.

    Args:
        name: Of the metric.
        references: Index of the right option.
        predictions: The harness's ``LLResults``, with log-likelihoods of the options in ``lls``.
    """
    lls = np.asarray([predictions.lls], dtype=np.float64)
    log_probs = letter_log_softmax(lls)
    columns = (values[0].tolist() for values in (np.exp(log_probs), log_probs, lls))
    letters = [Letter(*values) for values in zip(*columns, strict=True)]
    doc = {"question": predictions.ctx, "choices": letters, "gold": references}
    return metrics.process_results(doc, letters)[name]


def _register() -> types.SimpleNamespace:
    found = types.SimpleNamespace()
    for metric, about in METRICS.items():
        for name in [metric] if metric in MEANS else [metric, f"{metric}_low", f"{metric}_high"]:
            # The harness has an `acc` of its own.
            if name != "acc":
                fn = functools.partial(of_question, name)
                if metric not in MEANS:
                    register_aggregation(name)(getattr(metrics, name))
                aggregation = "mean" if metric in MEANS else name
                kind = {"output_type": "multiple_choice", "higher_is_better": about.higher_is_better}
                register_metric(metric=name, aggregation=aggregation, **kind)(fn)
                setattr(found, name, fn)
    return found


#: The functions by name.
QUESTION = _register()
