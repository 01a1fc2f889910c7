"""Show accuracy against calibration for the artifacts of one model, and the regime of each, without a model or GPU.

RESULTS are folders that lm_eval or `calibtune eval` wrote, one for each artifact, or an output folder of `reproduce` or
`demo`, which stands for all evaluations in it. The page has the frontier of accuracy and conf-ECE, what section 4 of
arXiv 2505.01997 says of it, and preference collapse: how probabilities lie on the options. Where the questions' true
probabilities p* are known, as in the demo's world, it measures the true calibration error and its bounds; on real
questions it says what cannot be known.

  python -m calibtune regime runs/base runs/cft runs/rcft-1-epoch runs/rcft-5-epochs --output regime
  python -m calibtune demo --output demo && python -m calibtune regime demo --output regime
"""

from __future__ import annotations

import argparse
from pathlib import Path

from calibtune.commands.progress import write_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RESULTS", help="folders with lm_eval's results and samples"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write the page to")
    parser.add_argument("--base", metavar="DIR", help="folder or label of the model that is shown first")
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help="name of a run; once for each run")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")


def run(args: argparse.Namespace) -> int:
    """Write the page and print what it says of each task."""
    from calibtune.api import regime
    from calibtune.reading import MOST_LISTED, read_json

    page = write_page(regime, args)
    for name, task in read_json(args.output / "regime.json", most=MOST_LISTED)["tasks"].items():
        print(f"{name}, on the frontier: {'; '.join(task['frontier'])}")
        for label, model in task["models"].items():
            values = model["numbers"]
            tce = f", TCE {model['theory']['tce']['estimate']:.3f}" if "theory" in model else ""
            print(
                f"  {label}: accuracy {values['acc']:.3f}, conf-ECE {values['conf_ece_10']:.3f}{tce}; {model['regime']}"
            )
    print(f"page: {page} (figures/ and regime.json beside it)")
    return 0
