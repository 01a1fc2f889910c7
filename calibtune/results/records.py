"""Read what lm_eval's results file says of a run: its model and its prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibtune.reading import read_json
from calibtune.results.schema import AGAIN, Results

#: Name that lm_eval gives a samples file: task, then the time of the run.
FILE_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T[\d.\-:]+)\.jsonl")
#: Keys of model_args that name the model in lm_eval's backends.
MODEL_KEYS = ("pretrained", "model", "path", "engine", "base_url")
ADAPTER_KEYS = ("peft", "delta")
#: Said of a run whose prompts hold the day of the run.
DATED = (
    "its chat template writes the date (strftime_now), so that prompts change each day: evaluate on one day, or give a "
    'fixed date with --chat-template-args, for Llama 3.1 \'{"date_string": "26 Jul 2024"}\''
)


def record_beside(samples: Path) -> dict[str, Any]:
    """Return the results file of the run that wrote a samples file; empty where there is none.

    Raises:
        UserError: It cannot be read.
    """
    match = FILE_NAME.fullmatch(samples.name)
    path = samples.parent / f"results_{match['date']}.json" if match else None
    return dict(read_json(path, Results, AGAIN)) if path is not None and os.path.lexists(path) else {}


def model_args(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return model_args as a dict; lm_eval can also write them as a string."""
    given = (record.get("config") or {}).get("model_args")
    if isinstance(given, dict):
        return given
    pairs = (pair.partition("=") for pair in str(given or "").split(",") if "=" in pair)
    args: dict[str, Any] = {key.strip(): value for key, _, value in pairs}
    if not args and record.get("model_name"):
        args["pretrained"] = record["model_name"]
    return args


def model_of(args: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return base model and adapter that model_args name, None where they do not.

    Example:
        >>> model_of({"pretrained": "m", "peft": "runs/rcft", "dtype": "float32"})
        ('m', 'runs/rcft')
    """
    found = (next((str(args[key]) for key in keys if args.get(key)), None) for keys in (MODEL_KEYS, ADAPTER_KEYS))
    model, adapter = found
    return model, adapter


def is_dated(record: Mapping[str, Any]) -> bool:
    """Return whether a run's prompts hold the day on which it ran."""
    return "strftime_now" in str(record.get("chat_template"))
