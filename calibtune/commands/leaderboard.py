"""Rank many models on many tasks from lm_eval's output, without a model or GPU.

Each DIR is a folder that lm_eval wrote with --log_samples --output_path, for letter tasks or any
other multiple-choice task; it may have runs of several models.

  python -m calibtune leaderboard runs/* --output board
  python -m calibtune leaderboard runs/new-model --add --output board      # the old samples may be gone
  python -m calibtune leaderboard runs/* --sort conf_ece --output by-ece

The models of a task are compared on the questions that all of them answered, each pair by a paired
test, with Holm's correction. A rank's interval begins after all models that the tests put ahead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from calibtune.commands.progress import steps_of
from calibtune.text import visible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders with lm_eval's results and samples"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write the board to")
    parser.add_argument(
        "--sort",
        choices=("nll", "conf_ece", "acc"),
        help="rank by NLL (default), which is low for right and calibrated answers, by conf-ECE or by accuracy",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--add", action="store_true", help="add the models to the board in the output folder")
    existing.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")


def run(args: argparse.Namespace) -> int:
    """Write the board and print its first table."""
    from calibtune.api import leaderboard

    with steps_of("leaderboard") as step:
        leaderboard(args.folders, args.output, sort=args.sort, add=args.add, overwrite=args.overwrite, step=step)
    print(_summary(args.output))
    return 0


def _summary(output: Path) -> str:
    from calibtune.reading import MOST_LISTED, read_json
    from calibtune.reporting.leaderboard.tables import TITLES, number, ranks

    results = read_json(output / "leaderboard.json", most=MOST_LISTED)
    table, sort = results["tables"][0], results["sort"]
    width = max(len(row["label"]) for row in table["rows"][:10])
    lines = [f"{table['name']}, {table['questions']:,} questions, by {TITLES[sort]}:"]
    lines.append(f"  {'model':<{width}}  rank          NLL  conf-ECE (floor)  accuracy")
    for row in table["rows"][:10]:
        numbers, (rank, ends) = row["numbers"], ranks(row, sort)
        ece = f"{number(numbers['conf_ece_10'])} ({number(numbers['conf_ece_10_floor'])})"
        texts = f"{rank:>4} {ends:<7}  {number(numbers['nll']):>6}  {ece:>16}  {number(numbers['acc']):>8}"
        lines.append(f"  {row['label']:<{width}}  {texts}")
    more = len(table["rows"]) - 10
    lines += [f"  and {more} more"] * (more > 0)
    lines += [
        f"  page     {output / 'leaderboard.html'}",
        f"  tables   {output / 'leaderboard.csv'}, {output / 'pairs.csv'}, {output / 'leaderboard.md'}",
        *(f"Note: {note}" for note in results["notes"]),
        f"Next: open {output / 'leaderboard.html'} in a browser",
    ]
    return visible("\n".join(lines), "\n")
