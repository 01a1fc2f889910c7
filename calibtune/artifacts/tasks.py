"""Write task YAMLs that give raw and temperature-scaled metrics from the same forward passes."""

from __future__ import annotations

from pathlib import Path

import yaml

from calibtune.data.tasks import installed_tasks
from calibtune.files import write_text

#: Suffix of a scaled task's name.
SUFFIX = "_scaled"


def write_scaled_tasks(folder: Path, temperature: float) -> list[str]:
    """Write a scaled YAML for each installed letter task.

    Use them with ``lm_eval --include_path FOLDER --tasks NAME_scaled``.

    Args:
        folder: Folder of the YAMLs.
        temperature: T of the filter pipeline ``scaled``; the pipeline ``none`` gives raw metrics.

    Returns:
        The names of the tasks written.
    """
    names = []
    for name, path in installed_tasks().items():
        pipelines = [
            {"name": "none", "filter": [{"function": "letter_softmax"}]},
            {"name": "scaled", "filter": [{"function": "letter_softmax", "temperature": temperature}]},
        ]
        config = {"include": str(path), "task": name + SUFFIX, "filter_list": pipelines}
        write_text(folder / f"{name}{SUFFIX}.yaml", yaml.safe_dump(config, sort_keys=False))
        names.append(name + SUFFIX)
    return names
