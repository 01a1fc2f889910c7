"""Write the report's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibtune.files import refuse_existing, write_bytes, write_json, write_text
from calibtune.parallel import Map
from calibtune.reporting.formats import latex, markdown, table_csv
from calibtune.reporting.page import REGIME, regime_page, render
from calibtune.reporting.regime.page import render as render_regime


def write(
    results: Mapping[str, Any],
    output: Path,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    mapped: Map = map,
) -> int:
    """Write ``report.html``, ``regime.html``, ``figures/``, ``results.json`` and the tables (.csv, .md, .tex).

    Args:
        results: Results of :func:`calibtune.reporting.build.build`.
        output: The output folder; created if it does not exist.
        overwrite: Remove existing files in ``output``.
        step: Called with a text after each piece of work.
        mapped: ``map``, or one over several processes.

    Returns:
        The number of figures.

    Raises:
        UserError: The folder is not empty and ``overwrite`` is off.
        WorkFailed: A file cannot be written.
    """
    page, files = render(results, step, mapped)
    regime = render_regime(results, step, "results.json", files, mapped)[0] if regime_page(results) else None
    refuse_existing(output, overwrite)
    for name, data in files.items():
        write_bytes(output / "figures" / name, data)
    write_text(output / "tables.csv", table_csv(results))
    write_text(output / "tables.md", markdown(results))
    write_text(output / "tables.tex", latex(results))
    write_json(output / "results.json", results)
    if regime is not None:
        write_text(output / REGIME, regime)
    write_text(output / "report.html", page)
    return len({Path(name).stem for name in files})
