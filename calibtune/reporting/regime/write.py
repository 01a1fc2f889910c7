"""Write the files of the regime page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibtune.files import refuse_existing, write_bytes, write_json, write_text
from calibtune.parallel import Map
from calibtune.reporting.drawing import warn_of_signs
from calibtune.reporting.regime import numbers
from calibtune.reporting.regime.page import render


def write(
    results: Mapping[str, Any],
    output: Path,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    mapped: Map = map,
) -> None:
    """Write ``regime.html``, ``figures/`` and ``regime.json``.

    Args:
        results: Results of :func:`calibtune.reporting.build.build`.
        output: The output folder; created if it does not exist.
        overwrite: Remove existing files in ``output``.
        step: Called with a text after each piece of work.
        mapped: ``map``, or one over several processes.

    Raises:
        UserError: The folder is not empty and ``overwrite`` is off.
        WorkFailed: A file cannot be written.
    """
    warn_of_signs(results)
    page, files = render(results, step, mapped=mapped)
    refuse_existing(output, overwrite)
    for name, data in files.items():
        write_bytes(output / "figures" / name, data)
    write_json(output / "regime.json", summary(results))
    write_text(output / "regime.html", page)


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's numbers: for each task its frontier and, by model, measures, regime, theory and spread."""
    tasks = {}
    for name, task in results["tasks"].items():
        if task["figures"]:
            entries, regimes = task["methods"], numbers.verdicts(task["methods"])
            tasks[name] = {
                "frontier": numbers.frontier(entries),
                "most_accurate_calibrated": numbers.most_accurate_calibrated(entries),
                "models": {
                    label: {
                        "questions": entry["questions"],
                        "regime": regimes[label],
                        **{key: entry[key] for key in ("numbers", "theory", "spread", "options") if key in entry},
                    }
                    for label, entry in entries.items()
                },
            }
    return {"calibtune": results["calibtune"], "base": results["base"], "tasks": tasks, "notes": results["notes"]}
