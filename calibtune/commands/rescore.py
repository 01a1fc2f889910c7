"""Recompute all calibration metrics from lm_eval's samples files, without a model or GPU.

SAMPLES is a samples_<task>_<date>.jsonl file or a folder that lm_eval wrote with --log_samples --output_path.

  python -m calibtune rescore out
  python -m calibtune rescore out --bins 15 --edge right     # the bins of Guo et al. 2017
  python -m calibtune rescore out --temperature 1.7          # with temperature scaling at T = 1.7
  python -m calibtune rescore out/1 out/2                    # shards (eval --shard) count as one run
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from calibtune.results.table import for_json, numbers_table
from calibtune.text import visible
from harness_ext.binning import equal_width_edges

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("samples", nargs="+", type=Path, metavar="SAMPLES", help="samples files or folders")
    parser.add_argument(
        "--bins", nargs="+", type=int, default=[10, 14], metavar="M", help="numbers of bins (default: 10 14)"
    )
    parser.add_argument(
        "--edge",
        choices=("left", "right"),
        default="left",
        help="bins closed on the left, [a, b), or on the right, (a, b] (default: left)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="divide log-likelihoods by T (default: as each filter of the run did)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the metrics of each file."""
    from calibtune.metrics import summary
    from calibtune.results.pairs import SAME_ANSWERS, digest
    from calibtune.results.ranges import range_warning, unseen_ranges
    from calibtune.results.records import model_args, model_of, record_beside
    from calibtune.results.samples import find_samples, read_samples
    from calibtune.results.shards import together

    for bins in args.bins:
        equal_width_edges(bins)  # fails for a bad number before any file is read
    output: dict[str, dict[str, Any]] = {}
    runs: dict[tuple[str, str], tuple[Any, Path]] = {}
    for files in together(file for path in args.samples for file in find_samples(path)):
        samples = read_samples(*files)
        # A run with a temperature has one filter at T = 1 and one scaled: each is shown.
        filters = samples.temperatures if args.temperature is None else {}
        for name, t in (filters or {"": 1.0 if args.temperature is None else args.temperature}).items():
            numbers = summary(samples.log_probs, samples.labels, tuple(args.bins), args.edge, t, further=True)
            numbers |= (ranges := unseen_ranges(samples, t, tuple(args.bins), args.edge))
            if said := range_warning(samples, ranges):
                logger.warning("%s", said)
            key = f"{samples.where}, filter {name}" if len(filters) > 1 else samples.where
            output[key] = {"task": samples.task, "questions": len(samples.labels), "temperature": t, **numbers}
        model = model_of(model_args(record_beside(samples.path)))
        first, where = runs.setdefault((samples.task, digest(samples)), (model, samples.path))
        if first != model:
            logger.warning("%s and %s %s", where, samples.path, SAME_ANSWERS)
    if args.json:
        print(json.dumps({file: for_json(numbers) for file, numbers in output.items()}, indent=2), file=args.stdout)
    else:
        for file_name, values in output.items():
            numbers = {
                name: value for name, value in values.items() if name not in ("task", "questions", "temperature")
            }
            title = f"{values['task']}: {values['questions']} questions, T = {values['temperature']:g}  ({file_name})"
            print(numbers_table(visible(title), numbers) + "\n")
    return 0
