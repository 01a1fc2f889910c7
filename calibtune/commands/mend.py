"""Mend a model in one go: measure it, fit what may mend it, choose by held-out questions, and say what was gained.

  python -m calibtune mend --model M --output mended                     # the paper's pool, ARC out of domain
  python -m calibtune mend --model M --data quiz.csv --output mended     # questions of one's own
  python -m calibtune mend --model M --budget 5 --limit 500 --output mended    # a laptop: a temperature alone
  python -m calibtune mend --model M --orders all --output mended    # try several orders of the options, too

It runs ordinary commands, which it prints: doctor, eval, fit, report. First a temperature; if the model cannot be told
from calibrated on its held-out questions, it is left as it is. Else an adapter too (`fit --method auto`: the mean of 4,
2 or 1, as many as --budget has time for), with and without a temperature. With --orders also a temperature at several
orders of the options, on the model and on the adapter: as many passes of the model for each question. The lowest NLL on
held-out questions wins, never one on evaluated questions; an adapter that loses more than 2 points of win rate on
preference pairs does not. Started again, it goes on.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from calibtune.commands.models import add_model_arguments
from calibtune.commands.questions import add_question_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of all that is made")
    add_question_arguments(parser, "mc_calib_indomain")
    parser.add_argument(
        "--out-tasks",
        metavar="T[,T]",
        help="measured, never fitted on (default: mc_calib_arc_merged where the questions are ours, else none)",
    )
    parser.add_argument(
        "--apply-chat-template", action=argparse.BooleanOptionalAction, help="default: if the tokenizer has one"
    )
    add_model_arguments(parser)
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none", help="default: none")
    parser.add_argument("--limit", type=int, metavar="N", help="measure on the first N questions of each task")
    parser.add_argument("--budget", type=float, default=60, metavar="MINUTES", help="for adapters (default: 60)")
    parser.add_argument(
        "--orders",
        default=1,
        metavar="N|all",
        help="try N cyclic orders of each question's options, or as many as it has options, too (default: 1, no more)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON at the end")


def go_on(args: argparse.Namespace) -> str:
    """Return what is said after Ctrl-C."""
    return "the same command goes on where it stopped"


def run(args: argparse.Namespace) -> int:
    """Mend, and print what was gained, the recommendation and the next command."""
    from calibtune.api import mend

    mended = mend(**{name: getattr(args, name) for name in inspect.signature(mend).parameters})
    if args.json:
        print((args.output / "mend.json").read_text(encoding="utf-8"), end="", file=args.stdout)
        return 0
    print("\n" + "\n".join(mended.sentences))
    print(f"written to {args.output / 'mend.md'}\nnext: open {mended.report} in a browser")
    return 0
