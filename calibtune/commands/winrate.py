r"""Compute win rates by an LLM judge: AlpacaEval and Arena-Hard.

Each benchmark writes winrate_<benchmark>.json and a results file in lm_eval's format to --output.

  python -m calibtune winrate alpaca-eval --annotations annotations.json --output out     # no judge, no model
  python -m calibtune winrate alpaca-eval --model M --artifact adapter --instructions alpaca_eval.json \
      --reference gpt4_outputs.json --judge gpt-4-1106-preview --output out               # key in OPENAI_API_KEY
  python -m calibtune winrate alpaca-eval --model M --artifact adapter --instructions alpaca_eval.json \
      --reference M --both-orders --judge J --judge-base-url http://localhost:8000/v1 --output out
  python -m calibtune winrate arena-hard --bench arena-hard-auto --model M --name tuned --output out
  python -m calibtune winrate arena-hard --bench arena-hard-auto --name tuned --compare base --output out
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from calibtune.commands.models import key_values
from calibtune.errors import UserError

if TYPE_CHECKING:
    from calibtune.winrate.answers import Model, Settings
    from calibtune.winrate.results import Result

#: Options that a run with a judge requires.
JUDGED = ("model", "instructions", "reference", "judge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare both benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    _alpaca_arguments(benchmarks.add_parser("alpaca-eval", help="compare with reference answers or a model"))
    _arena_arguments(benchmarks.add_parser("arena-hard", help="use answers and judgments in its checkout"))


def _alpaca_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="recorded annotations instead of a judge")
    _model_arguments(parser)
    parser.add_argument("--instructions", type=Path, metavar="FILE", help="JSON list of objects with instruction")
    parser.add_argument("--reference", metavar="FILE|MODEL", help="outputs file or model to compare with")
    parser.add_argument("--judge", metavar="NAME", help="a judge of alpaca-eval, or the name of a chat model")
    parser.add_argument("--judge-base-url", metavar="URL", help="OpenAI-compatible endpoint (default: OpenAI's)")
    parser.add_argument(
        "--judge-key-env",
        default="OPENAI_API_KEY",
        metavar="VAR",
        help="environment variable with the API key (default: OPENAI_API_KEY)",
    )
    parser.add_argument("--judge-workers", type=int, default=8, metavar="N", help="parallel requests (default: 8)")
    parser.add_argument(
        "--judge-retries", type=int, default=5, metavar="N", help="attempts after a failed request (default: 5)"
    )
    parser.add_argument(
        "--judge-timeout", type=float, default=120.0, metavar="SECONDS", help="longest wait for a reply (default: 120)"
    )
    parser.add_argument("--both-orders", action="store_true", help="judge each pair in both orders of the answers")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N instructions")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="annotations.json of another run to compare with")


def _arena_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bench", type=Path, required=True, metavar="DIR", help="checkout of arena-hard-auto or its data"
    )
    parser.add_argument("--name", help="the model's name in the checkout (default: from --model and --artifact)")
    _model_arguments(parser)
    parser.add_argument("--judge", metavar="NAME", help="judge to use, if there are judgments of several")
    parser.add_argument("--category", help="category of questions to use, if baselines differ between categories")
    parser.add_argument("--compare", metavar="NAME", help="another judged model to compare with")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the results; a rerun resumes from it"
    )
    parser.add_argument("--model", metavar="M", help="hub id or folder of the base model")
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="adapter on the base model")
    parser.add_argument(
        "--model-args", type=key_values, default={}, metavar="K=V,..", help="lm_eval model arguments: dtype=bfloat16"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available)")
    parser.add_argument(
        "--batch-size", default="1", metavar="N", help="answers generated at once, or auto (default: 1)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=2048, metavar="N", help="longest answer (default: 2048)")


def run(args: argparse.Namespace) -> int:
    """Run a benchmark, write its files and print the harness's table."""
    from calibtune.locks import held
    from calibtune.winrate import results

    if args.artifact and not args.model:
        raise UserError(f"--artifact {args.artifact} needs its base model; give it as --model")
    with held(args.output):
        result = _alpaca_eval(args) if args.benchmark == "alpaca-eval" else _arena_hard(args)
        if result is not None:
            results.write(result, args.output)
    if result is not None:
        print(results.table(result))
    return 0


def _alpaca_eval(args: argparse.Namespace) -> Result:
    from calibtune.winrate import alpaca, runs

    if args.annotations:
        extra = [f"--{name.replace('_', '-')}" for name in (*JUDGED, "both_orders", "limit") if getattr(args, name)]
        if extra:
            raise UserError(
                f"--annotations {args.annotations} is used without judge and model; leave out {', '.join(extra)}"
            )
        return runs.alpaca_result(alpaca.read_annotations(args.annotations), args.compare)
    lacking = [f"--{name}" for name in JUDGED if not getattr(args, name)]
    if lacking:
        raise UserError(f"winrate alpaca-eval needs {', '.join(lacking)} too; give them, or only --annotations FILE")
    from calibtune.endpoints.endpoint import Endpoint

    _refuse_below(args, 1, "judge_workers", "limit")
    _refuse_below(args, 0, "judge_retries")
    if not args.judge_timeout > 0:
        raise UserError(f"--judge-timeout {args.judge_timeout:g} is not above 0; give a number of seconds")
    patience = {"timeout": args.judge_timeout, "retries": args.judge_retries, "workers": args.judge_workers}
    called = {"name": "judge", "flag": "--judge-base-url"}
    # Fail before hours of generation if the key or an input file is missing.
    endpoint = Endpoint.from_environment(args.judge_base_url, args.judge_key_env, **patience, **called)
    instructions = runs.read_instructions(args.instructions, args.limit)
    model, settings = _model(args), _settings(args)
    theirs, their_answers = runs.reference_outputs(args.reference, instructions, args.output, settings, model.extra)
    mine, answers = runs.outputs_of(model, instructions, args.output, settings)
    runs.write_json(args.output / "model_outputs.json", mine)
    runs.write_json(args.output / "reference_outputs.json", theirs)
    rows = runs.judge_head_to_head(mine, theirs, args.judge, endpoint, args.output, args.both_orders)
    judged = alpaca.judged(rows, str(args.output / "annotations.json"))
    return runs.with_answers(runs.alpaca_result(judged, args.compare), model, [answers, their_answers])


def _arena_hard(args: argparse.Namespace) -> Result | None:
    from calibtune.winrate import arena, runs

    bench = arena.open_bench(args.bench)
    if not args.model:
        if not args.name:
            raise UserError(
                "winrate arena-hard has no model; give --name of a judged model, or --model to answer the questions"
            )
        return runs.arena_result(bench, args.name, args.judge, args.category, args.compare)
    model = _model(args)
    name = args.name or model.name
    questions = [{"instruction": prompt} for prompt in bench.questions.values()]
    mine, answers = runs.outputs_of(model, questions, args.output, _settings(args))
    path = arena.write_answers(bench, name, [row["output"] for row in mine])
    print(f"{len(mine)} answers of {name} are in {path}")
    if not bench.judgments(name):
        print("Judge them with the tool's own gen_judgment.py, then run this command again without --model.")
        return None
    result = runs.arena_result(bench, name, args.judge, args.category, args.compare)
    return runs.with_answers(result, model, [answers])


def _model(args: argparse.Namespace) -> Model:
    from calibtune.winrate.answers import Model

    if ours := {"pretrained", "peft"} & args.model_args.keys():
        raise UserError(f"--model-args {ours.pop()} is the model or the adapter; give them with --model and --artifact")
    return Model(args.model, args.artifact, tuple(args.model_args.items()))


def _settings(args: argparse.Namespace) -> Settings:
    from calibtune.winrate.answers import Settings

    _refuse_below(args, 1, "max_new_tokens")
    size = args.batch_size
    if size != "auto" and not (size.isdigit() and int(size) > 0):
        raise UserError(f"--batch-size {size} is not a whole number above 0; give such a number or auto")
    return Settings(args.max_new_tokens, size if size == "auto" else int(size), args.device)


def _refuse_below(args: argparse.Namespace, least: int, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value} is below {least}; give at least that")
