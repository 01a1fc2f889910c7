"""Write a report with figures and tables from lm_eval's output, without a model or GPU.

Each DIR is a folder that lm_eval wrote with --log_samples --output_path; it may have runs of
several models. All other runs are compared with the first one, question by question.

  python -m calibtune report runs/base runs/cft runs/rcft --output runs/report
  python -m calibtune report out --base out/my-model --label base --label cft --output report
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from calibtune.commands.progress import write_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders with lm_eval's results and samples"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write the report to")
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="folder or label of the run to compare with (default: the earliest of the first folder)",
    )
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help="name of a run; once for each run")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")


def run(args: argparse.Namespace) -> int:
    """Write the report and print the paths of its files."""
    from calibtune.api import report

    write_page(report, args)
    print(_summary(args.output))
    return 0


def _summary(output: Path) -> str:
    from calibtune.reading import MOST_LISTED, read_json

    results = read_json(output / "results.json", most=MOST_LISTED)
    figures = len(list((output / "figures").glob("*.svg")))
    methods, tasks = len(results["methods"]), len(results["tasks"])
    lines = [
        f"Report of {methods} method{'s' * (methods > 1)} on {tasks} task{'s' * (tasks > 1)}, base {results['base']}:",
        f"  page     {output / 'report.html'}",
        f"  figures  {output / 'figures'} ({figures}, each as SVG and PDF, those for a slide as PNG too)",
        f"  tables   {output / 'tables.md'}, {output / 'tables.tex'}, {output / 'tables.csv'}",
        f"  numbers  {output / 'results.json'}",
        *(f"Note: {note}" for note in results["notes"]),
        f"Next: open {output / 'report.html'} in a browser",
    ]
    if methods == 1 and results["tasks"]:
        (method,) = results["methods"]
        task = max(results["tasks"], key=lambda name: bool(results["tasks"][name]["pooled"]))
        lines[-1] += "; to improve calibration, run:"
        words = ["fit", "--method", "temperature", "--model", method["model"], "--tasks", task]
        words += ["--artifact", method["adapter"]] if method["adapter"] else []
        words += ["--apply-chat-template"] if "chat template" in method["settings"] else []
        words += ["--output", "temperature"]
        lines.append(f"  python -m calibtune {shlex.join(words)}")
    return "\n".join(lines)
