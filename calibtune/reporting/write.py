"""Write the report's files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibtune.files import refuse_existing, write_json, write_text
from calibtune.reporting.figures import FOR_FILES, add_key
from calibtune.reporting.formats import latex, markdown
from calibtune.reporting.numbers import drawn
from calibtune.reporting.page import REGIME, regime_page, render
from calibtune.reporting.regime.page import render as render_regime
from calibtune.reporting.style import save, styled

#: Figures with shaded bars, which need a key.
SHADED = ("reliability", "classwise")


def write(
    results: Mapping[str, Any], output: Path, overwrite: bool = False, step: Callable[[str], None] = lambda _: None
) -> int:
    """Write ``report.html``, ``regime.html``, ``figures/``, ``tables.md``, ``tables.tex`` and ``results.json``.

    Args:
        results: Results of :func:`calibtune.reporting.build.build`.
        output: The output folder; created if it does not exist.
        overwrite: Remove existing files in ``output``.
        step: Called with a text after each piece of work.

    Returns:
        The number of figures.

    Raises:
        UserError: The folder is not empty and ``overwrite`` is off.
        WorkFailed: A file cannot be written.
    """
    page = render(results, step)
    refuse_existing(output, overwrite)
    count = 0
    for name, task in results["tasks"].items():
        if task["figures"]:
            count += _figures(drawn(task), output / "figures", file_stem(name), step)
    write_text(output / "tables.md", markdown(results))
    write_text(output / "tables.tex", latex(results))
    write_json(output / "results.json", results)
    if regime_page(results):
        write_text(output / REGIME, render_regime(results, step, "results.json"))
    write_text(output / "report.html", page)
    return count


def file_stem(task: str) -> str:
    """Return a task's name as a part of file names; other names give others, also where signs are replaced.

    Example:
        >>> file_stem("mc_calib_arc"), file_stem("mc calib:arc")
        ('mc_calib_arc', 'mc_calib_arc-1a26043a')
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", task)[:80]
    return stem if stem == task else f"{stem}-{hashlib.sha256(task.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _figures(entries: Mapping[str, Any], folder: Path, task: str, step: Callable[[str], None]) -> int:
    count = 0
    for kind, draw in FOR_FILES.items():
        if kind == "temperature" and not any("unscaled" in entry for entry in entries.values()):
            continue
        with styled():
            figure = draw(entries)
            if kind in SHADED:
                add_key(figure, lines=kind == "reliability")
            save(figure, folder / f"{task}_{kind}")
        count += 1
        step(f"drawn {kind} of {task}")
    return count
