"""Evaluations of small fits on the CPU."""

from calibtune.evaluation.evaluate import EvaluationOptions, evaluate
from calibtune.results.measures import floor_measures, harness_measures, refinement_measures


def small_evaluation(output, tasks=("mc_calib_arc",), **options):
    """Evaluate a tiny model or an artifact of one, and return what :func:`evaluate` returns."""
    options = {"device": "cpu", "precision": "fp32", "batch_size": "4", **options}
    return evaluate(EvaluationOptions(tasks=tasks, output=output, **options))


def metrics(found, task="mc_calib_arc", pipeline="none"):
    """Return the metrics of a task by name, those of one filter pipeline."""
    end = f",{pipeline}" if pipeline != "none" else ""
    return {k.split(",")[0]: v for k, v in found.results[task].items() if k == k.split(",")[0] + end}


def measured(rows, temperature):
    """Return the metrics of samples at a temperature, from their log-likelihoods alone."""
    given = rows.log_probs, rows.labels, temperature
    return harness_measures(*given) | floor_measures(*given) | refinement_measures(*given)
