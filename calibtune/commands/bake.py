"""Bake a temperature into a model's weights, so that any server gives calibrated letters.

  python -m calibtune bake --artifact runs/temperature --output models/scaled

All logits are divided by T, not only the letters'. Greedy decoding does not change; sampled text
becomes more random if T > 1 and less random if T < 1. A temperature that was fitted on 4-bit weights
is baked into plain weights with the same values.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR", help="output of fit with a temperature")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the new model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the base model")
    parser.add_argument("--overwrite", action="store_true", help="remove existing files in --output")


def run(args: argparse.Namespace) -> int:
    """Bake the temperature and print the next command."""
    from calibtune.artifacts.bake import bake
    from calibtune.locks import held

    with held(args.output):
        bake(args.artifact, args.output, args.overwrite, args.trust_remote_code)
    model = shlex.quote(str(args.output))
    print(f"written to {args.output}\nnext: python -m calibtune eval --model {model} --tasks T --output out")
    return 0
