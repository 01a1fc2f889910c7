"""Write lm_eval's results and samples files, and check that they are complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import sanitize_model_name

from calibtune.errors import UserError, WorkFailed
from calibtune.reading import read_json
from calibtune.results.schema import AGAIN, Results


def model_name(arguments: Mapping[str, Any]) -> str:
    """Return the name below which lm_eval files a model, from its arguments."""
    return str(next(arguments[key] for key in ("peft", "pretrained", "model") if key in arguments))


def refuse_other_run(output: Path, setup: Mapping[str, Any]) -> None:
    """Refuse a folder in which another evaluation of the same model would be hidden by this one.

    lm_eval's folder has the model's name alone, whatever its settings, and of each task the newest file is read.

    Args:
        output: lm_eval's output folder.
        setup: What tells evaluations apart, see :func:`calibtune.evaluation.evaluate.setup_of`; lm_eval's results files
            hold it under ``config``, ``calibtune``.

    Raises:
        UserError: With the first settings that differ.
    """
    folder = output / sanitize_model_name(model_name(setup["model_args"]))
    for path in sorted(folder.glob("results_*.json")):
        before: Any = (read_json(path, Results, AGAIN).get("config") or {}).get("calibtune")
        if before is None:
            raise UserError(
                f"--output {output} holds an evaluation by lm_eval alone ({path.name}); give another folder"
            )
        mine, theirs = ({**each, **each["model_args"]} for each in (setup, before))
        names = sorted((mine.keys() | theirs.keys()) - {"model_args"})
        other = [f"{n} {theirs.get(n)!r} -> {mine.get(n)!r}" for n in names if theirs.get(n) != mine.get(n)]
        if other:
            raise UserError(
                f"--output {output} holds another evaluation of this model ({', '.join(other)}); give another "
                "folder, so that both are kept apart"
            )


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
