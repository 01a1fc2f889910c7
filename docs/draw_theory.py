"""Draw the figures of docs/theory.md: bounds from a page of regimes, collapse from the counts of a real model.

python tests/benchmarks/regime_world.py world
python -m calibtune regime world/learned --output learned
python docs/draw_theory.py learned
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from calibtune.reporting.style import LIGHT, save, styled

DOCS = Path(__file__).parent
COUNTS = DOCS.parent / "tests" / "benchmarks" / "results" / "dpo-collapse.json"
SHOWN = ("base", "text-b0.01-epoch-3", "letters-b0.01-last")


def small(picture: Path, output: Path) -> None:
    """Write a picture with few colors: a palette is a third of the size."""
    Image.open(picture).convert("RGB").quantize(64).save(output, optimize=True)


def draw_collapse(output: Path) -> None:
    """Draw how probabilities lie on the options before and after DPO, in domain."""
    rows = {row["model"]: row for row in json.loads(COUNTS.read_text("utf-8"))["rows"] if "indomain" in row["task"]}
    with styled(), tempfile.TemporaryDirectory() as folder:
        figure = Figure(figsize=(7.4, 2.4), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
            row = rows[name]
            counts = np.array(row["counts"])
            places = (np.arange(len(counts)) + 0.5) / len(counts)
            axes.bar(places, counts / counts.sum(), 1 / len(counts), color=LIGHT["shade4"], edgecolor=LIGHT["ink"])
            axes.set_title(f"{row['shown']}\nsure of one option: {row['sure'] / row['questions']:.0%}", loc="left")
            axes.set(xlabel="probability of an option", xlim=(0, 1))
        figure.axes[0].set_ylabel("share of options")
        save(figure, Path(folder) / "figure")
        small(Path(folder) / "figure.png", output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("learned", type=Path, help="page of the questions that were learned by heart")
    folder = parser.parse_args().learned / "figures"
    small(folder / "mc_calib_world_learned_bounds.png", DOCS / "figures" / "bounds.png")
    draw_collapse(DOCS / "figures" / "collapse.png")
