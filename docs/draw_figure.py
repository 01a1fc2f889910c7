"""Draw the README's figure from the folder that the demo wrote.

python -m calibtune demo --output demo
python docs/draw_figure.py demo
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from calibtune.reporting.build import build
from calibtune.reporting.figures import reliability
from calibtune.reporting.style import save, styled

TASK = "mc_calib_world_ood"
LABELS = ("DPO-aligned model", "the same after RCFT")


def draw(demo: Path, output: Path) -> None:
    """Draw the reliability diagrams of the aligned model before and after RCFT, out of domain."""
    folders = [demo / "evaluations" / name for name in ("aligned", "rcft")]
    results = build(folders, labels=LABELS)
    with styled(), tempfile.TemporaryDirectory() as folder:
        figure = reliability(results["tasks"][TASK]["methods"])
        save(figure, Path(folder) / "figure")
        # Few colors: a palette is a third of the size.
        Image.open(Path(folder) / "figure.png").convert("RGB").quantize(64).save(output, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of `calibtune demo`")
    default = Path(__file__).parent / "figures" / "before-after.png"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    draw(arguments.demo, arguments.output)
