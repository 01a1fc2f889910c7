"""Write task YAMLs that evaluate a temperature in the harness: raw and scaled letters from the same forward passes."""

from __future__ import annotations

from pathlib import Path

import yaml

from calibtune.data.tasks import installed_tasks
from calibtune.files import write_text

#: What is added to a task's name.
SUFFIX = "_scaled"


def write_scaled_tasks(folder: Path, temperature: float) -> list[str]:
    """Write a YAML for each installed letter task, for ``lm_eval --include_path FOLDER --tasks NAME_scaled``.

    Args:
        folder: Where to write.
        temperature: T of the pipeline ``scaled``; the pipeline ``none`` stays raw.

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
