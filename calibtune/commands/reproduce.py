"""Reproduce the tables of arXiv 2505.01997 for a model: fits, evaluations and one report beside the paper's numbers.

Every step is a command of its own, which is printed. Started again with the same --output, it goes on after the last
step that is done, and a cut-off fit goes on from its checkpoint.

  python -m calibtune reproduce --model M --dry-run --output paper           # the plan, with hours and memory
  python -m calibtune reproduce --model M --seeds 0,1,2 --output paper       # calibtune's default recipes
  python -m calibtune reproduce --model M --config paper --output to-the-letter

Tables: 2, methods in and out of domain; 3, win rates; 4, lambda; 5, 14 bins. Table 3 always has UltraFeedback;
AlpacaEval where --judge and --instructions are given; Arena-Hard where --bench is, a checkout of arena-hard-auto whose
judgments may be recorded. --config paper is to the letter: 3,000 questions, none held out, batch 2, 5 epochs, NF4,
E-step on training rows. Its learning rate is missing in our copy of the paper: 5e-5 unless --learning-rate is given.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from calibtune.errors import UserError

if TYPE_CHECKING:
    from calibtune.reproduce.plan import Options
    from calibtune.steps import Step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of all that is made")
    parser.add_argument("--tables", type=_numbers, default=(2, 3, 4, 5), metavar="N[,N]", help="default: 2,3,4,5")
    parser.add_argument(
        "--config", choices=("default", "paper"), default="default", help="recipes: calibtune's, or the paper's"
    )
    parser.add_argument("--seeds", type=_numbers, default=(0,), metavar="N[,N]", help="seeds of the fits (default: 0)")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="of the fits (default: the recipe's)")
    parser.add_argument("--judge", metavar="NAME", help="AlpacaEval's judge, against the base; key in OPENAI_API_KEY")
    parser.add_argument("--judge-base-url", metavar="URL", help="the judge's endpoint (default: OpenAI's)")
    parser.add_argument("--instructions", type=Path, metavar="FILE", help="AlpacaEval's instructions")
    parser.add_argument("--bench", type=Path, metavar="DIR", help="checkout of arena-hard-auto, for Arena-Hard")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with an estimate of hours and memory")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers; give some such as 0,1,2") from None


def go_on(args: argparse.Namespace) -> str:
    """Return what is said after Ctrl-C."""
    return "the same command goes on where it stopped"


def run(args: argparse.Namespace) -> int:
    """Print the plan, or run what is left of it and write the tables."""
    from calibtune.reproduce.plan import plan

    options = _options(args)
    steps = plan(options)
    if args.dry_run:
        _print_estimates(steps, options)
        return 0
    from calibtune.locks import held

    with held(options.output):
        _run_all(steps, options)
    return 0


def _run_all(steps: list[Step], options: Options) -> None:
    from calibtune.reproduce.tables import write_tables
    from calibtune.steps import check_plan, run_step

    check_plan(steps, options.output)
    for number, step in enumerate(steps, 1):
        place = f"[{number}/{len(steps)}]"
        if step.done():
            print(f"{place} done before: {step.name}", flush=True)
            continue
        print(f"{place} $ {step}", flush=True)
        run_step(step)
    page, *others = write_tables(options)
    print(f"the tables, beside the paper's: {page} ({', '.join(file.name for file in others)} beside it)")


def _options(args: argparse.Namespace) -> Options:
    from calibtune.reproduce.plan import TABLES, Options

    if bad := [number for number in args.tables if number not in TABLES]:
        raise UserError(f"--tables {bad[0]} is none of {', '.join(map(str, TABLES))}; give some of them")
    if min(args.seeds) < 0:
        raise UserError(f"--seeds {min(args.seeds)} is below 0; give 0 or more")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        raise UserError(f"--learning-rate {args.learning_rate} is no rate; give a number above 0")
    if bool(args.judge) != bool(args.instructions):
        raise UserError("--judge and --instructions make AlpacaEval together; give both or none")
    if args.output.is_file():
        raise UserError(f"--output {args.output} is a file; give a folder")
    from calibtune.models.loading import load_config, load_tokenizer
    from calibtune.spec import ModelSpec

    spec = ModelSpec(args.model)
    load_config(spec)
    alpaca = ["--judge", args.judge, "--instructions", str(args.instructions), "--both-orders"] if args.judge else []
    alpaca += ["--judge-base-url", args.judge_base_url] if args.judge and args.judge_base_url else []
    return Options(
        model=args.model,
        output=args.output,
        tables=args.tables,
        config=args.config,
        seeds=args.seeds,
        learning_rate=args.learning_rate,
        chat=bool(load_tokenizer(spec).chat_template),
        alpaca=tuple(alpaca),
        arena=args.bench,
    )


def _print_estimates(steps: list[Step], options: Options) -> None:
    from calibtune.estimate import PROMPT, estimate, inspect
    from calibtune.spec import ModelSpec

    model, total, most = inspect(ModelSpec(options.model)), 0.0, 0.0
    for number, step in enumerate(steps, 1):
        seconds, gib = estimate(step, model)
        done = step.done()
        said = "done" if done else "not known" if math.isnan(seconds) else f"{seconds / 3600:.2f} h, {gib:.1f} GiB"
        print(f"[{number}/{len(steps)}] {said}: {step}")
        if not done and not math.isnan(seconds):
            total, most = total + seconds, max(most, gib)
    print(
        f"about {total / 3600:.1f} h one after the other on this device ({model.rate / 1e12:.3g} TFLOP/s of matrix "
        f"products) and {most:.0f} GiB of its memory; {model.parameters / 1e9:.2g} B parameters, {PROMPT} tokens a "
        "question; hours can be off by a factor of three"
    )
