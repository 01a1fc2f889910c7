"""Merge an adapter into its base model's weights, for serving.

  python -m calibtune merge --artifact runs/rcft --output models/rcft
  python -m calibtune merge --artifact org/chat-lora --output models/chat    # another program's adapter
  python -m calibtune merge --artifact runs/qlora --dequantized --output models/qlora   # 4-bit base, de-quantized

A QLoRA adapter is trained on a 4-bit base. A merge with --dequantized is closest to the trained
model, and all there is where the base itself is stored in 4 bits; a merge into the original weights
differs a little more. Fit and report a temperature on the model that you serve.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--artifact",
        type=Path,
        required=True,
        metavar="DIR",
        help="output of fit with an adapter, or a PEFT adapter",
    )
    parser.add_argument("--model", help="base model, hub id or folder (default: the adapter's base)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the merged model")
    parser.add_argument("--dequantized", action="store_true", help="merge into the 4-bit base's de-quantized weights")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the base model")
    parser.add_argument("--overwrite", action="store_true", help="remove existing files in --output")


def run(args: argparse.Namespace) -> int:
    """Merge the adapter and print the next command."""
    from calibtune.artifacts.merge import merge
    from calibtune.locks import held

    with held(args.output):
        merge(args.artifact, args.output, args.dequantized, args.overwrite, args.trust_remote_code, args.model)
    model = shlex.quote(str(args.output))
    print(f"written to {args.output}\nnext: python -m calibtune eval --model {model} --tasks T --output out")
    return 0
