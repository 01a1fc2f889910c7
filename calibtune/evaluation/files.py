"""Write lm_eval's result and sample files, and make sure that they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker

from calibtune.errors import UserError, WorkFailed
from calibtune.files import read_json


def save_results(tracker: EvaluationTracker, results: dict[str, Any], samples: dict[str, list[Any]]) -> Path:
    """Write lm_eval's files, and make sure of it: lm_eval logs what goes wrong there and goes on.

    Returns:
        The folder that they are in.

    Raises:
        WorkFailed: A file is missing or not whole.
    """
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    folder = Path(str(tracker.output_path)) / str(tracker.general_config_tracker.model_name_sanitized)
    date = getattr(tracker, "date_id", "")
    file = folder / f"results_{date}.json"
    try:
        read_json(file)
        for task in results["configs"]:
            file = folder / f"samples_{task}_{date}.jsonl"
            with file.open("rb") as lines:
                if sum(line.endswith(b"\n") for line in lines) != len(samples[task]):
                    raise WorkFailed("some lines are missing")
    except (OSError, UserError) as error:
        raise WorkFailed(
            f"{file} was not written whole; see whether the disk is full, and run the same command again"
        ) from error
    return folder
