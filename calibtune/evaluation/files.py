"""Write lm_eval's results and samples files, and check that they are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker

from calibtune.errors import UserError, WorkFailed
from calibtune.files import read_json


def save_results(tracker: EvaluationTracker, results: dict[str, Any], samples: dict[str, list[Any]]) -> Path:
    """Write lm_eval's files and check them, because lm_eval only logs a failure to write.

    Args:
        tracker: lm_eval's tracker, which knows the output folder.
        results: Results of all tasks.
        samples: Samples by task.

    Returns:
        The folder of the files.

    Raises:
        WorkFailed: A file is missing or incomplete.
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
            f"{file} was not written completely; check whether the disk is full, and run the same command again"
        ) from error
    return folder
