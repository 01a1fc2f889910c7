"""Win rates by a judge: AlpacaEval and Arena-Hard.

Each benchmark writes winrate_<benchmark>.json and a results file of lm_eval into --output DIR.

python -m calibtune winrate alpaca-eval --annotations annotations.json --output out     # recorded: no judge, no model
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    alpaca = benchmarks.add_parser("alpaca-eval", help="win rate against reference answers or another model")
    alpaca.add_argument("--annotations", type=Path, metavar="FILE", help="recorded annotations of alpaca-eval")
    alpaca.add_argument("--output", type=Path, required=True, metavar="DIR", help="where results are written")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark asked for."""
    return _alpaca_eval(args)


def _alpaca_eval(args: argparse.Namespace) -> int:
    from calibtune.winrate import alpaca, results

    result = alpaca.result(alpaca.read_annotations(args.annotations))
    results.write(result, args.output)
    print(results.table(result))
    return 0
