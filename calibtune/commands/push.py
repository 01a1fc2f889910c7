"""Put what `calibtune fit` wrote onto the Hugging Face hub, with a card of its metrics, figure and commands.

  python -m calibtune push --artifact runs/rcft --repo ORG/NAME --dry-run look    # no network: see what would go there
  python -m calibtune push --artifact runs/rcft --repo ORG/NAME --private
  python -m calibtune eval --artifact ORG/NAME --tasks mc_calib_arc --output out  # on any machine

Only the artifact's own files are pushed: weights, configuration, tokenizer, T, task files and the
manifest with the hashes of its questions. whole.json holds the SHA-256 of each file. The token is
the one of HF_TOKEN or of `hf auth login`.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR", help="output of fit")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository; made where there is none")
    parser.add_argument("--private", action="store_true", help="only its owners can see a repository that is made")
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write into this folder what would be pushed")


def run(args: argparse.Namespace) -> int:
    """Push, and print the address and the next command."""
    from calibtune.publish import push, write_dry

    if args.dry_run:
        write_dry(args.artifact, args.repo, args.dry_run)
        print(f"written to {args.dry_run}; nothing was pushed")
        words = ["push", "--artifact", str(args.artifact), "--repo", args.repo, *["--private"] * args.private]
        print(f"next: read {args.dry_run / 'README.md'}, then python -m calibtune {shlex.join(words)}")
        return 0
    print(f"pushed to {push(args.artifact, args.repo, args.private)}")
    print(f"next: python -m calibtune eval --artifact {args.repo} --tasks T --output out")
    return 0
