"""Write task YAMLs that give raw and temperature-scaled metrics from the same forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from calibtune.data.letter_tasks import SUFFIX, pipelines
from calibtune.data.tasks import installed_tasks
from calibtune.files import write_text
from harness_ext.orders import SUFFIX as ORDERS
from harness_ext.orders import Orders


class _Function(str):
    """Name a function in YAML, written with its tag ``!function``."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Read ``!function`` as a name, so that nothing is imported."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Write names of functions with their tag."""


_Loader.add_constructor("!function", lambda _, node: _Function(node.value))
_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def write_scaled_tasks(folder: Path, temperature: float, orders: Orders = 1) -> list[str]:
    """Write a scaled YAML for each installed letter task, for use with plain ``lm_eval``.

    Use them with ``lm_eval --include_path FOLDER --tasks NAME_scaled``, on any machine that has calibtune: they name
    no path.

    Args:
        folder: Folder of the YAMLs.
        temperature: T of the filter pipeline ``scaled``; the pipeline ``none`` gives raw metrics.
        orders: In how many orders of the options the temperature is to be applied; the tasks ask in as many.

    Returns:
        The names of the tasks written.
    """
    names = []
    for name, path in installed_tasks().items():
        if name.endswith(ORDERS) != (orders != 1):
            continue
        config = {**_whole(path), "task": name + SUFFIX, "filter_list": pipelines(temperature)}
        if orders != 1:
            config["metadata"] = {**config["metadata"], "orders": orders}
        write_text(folder / f"{name}{SUFFIX}.yaml", yaml.dump(config, Dumper=_Dumper, sort_keys=False))
        names.append(name + SUFFIX)
    return names


def _whole(path: Path) -> dict[str, Any]:
    """Return a task's configuration with what it includes, as the harness merges it."""
    config: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    included = config.pop("include", None)
    return {**(_whole(path.parent / included) if included else {}), **config}
