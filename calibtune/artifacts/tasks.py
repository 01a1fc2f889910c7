"""Task YAMLs that evaluate a temperature in the harness: raw and scaled letters from the same forward passes."""

from __future__ import annotations

from pathlib import Path

import lm_eval
import yaml

from calibtune.files import write_text

#: What is added to a task's name.
SUFFIX = "_scaled"


def installed_tasks() -> dict[str, Path]:
    """Our letter tasks in the installed harness, by name; MMLU's single subjects and groups left out."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "mc_calib"
    found = {}
    for path in sorted(folder.glob("mc_calib*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "task: mc_calib" in text and "group:" not in text:
            found[path.stem] = path
    return found


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
