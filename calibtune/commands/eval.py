r"""Evaluate a base model or an artifact of `calibtune fit` through lm_eval, into lm_eval's own files.

  python -m calibtune eval --model M --tasks mc_calib_indomain,mc_calib_arc --output out/base
  python -m calibtune eval --artifact runs/rcft --tasks mc_calib_indomain,mc_calib_arc --output out/rcft
  python -m calibtune eval --artifact runs/t --tasks mc_calib_arc --output out/t    # raw and scaled in one pass
  python -m calibtune eval --model M --tasks mc_calib_arc --orders all --output out/orders    # all orders of options
  python -m calibtune eval --model M --data quiz.csv --output out/quiz        # questions of one's own
  python -m calibtune eval --model M --tasks mc_calib_arc --shard 3/8 --output out/3    # one of eight parts
  python -m calibtune eval --model M --tasks arc_easy --as-letters --output out/easy    # the harness's task, by letters
  python -m calibtune eval --backend api --base-url http://localhost:8000/v1 --model NAME --tasks mc_calib_arc \
      --apply-chat-template --output out/served       # an OpenAI-compatible server; its key in OPENAI_API_KEY
  python -m calibtune eval --model M --tasks mc_calib_arc --output out/base \
      --hf-hub-log-args push_results_to_hub=True hub_results_org=ORG    # also to the hub; token in HF_TOKEN

With --tasks ultrafeedback_winrate --guard winrate --guard-base out/base it exits with 1 if the artifact's win rate fell
by more than --margin against the base's, evaluated before.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import shlex
from pathlib import Path

from calibtune.commands.models import BASE_URL, Merged, add_model_arguments, key_values
from calibtune.commands.questions import add_question_arguments, question_spec
from calibtune.errors import UserError, WorkFailed
from calibtune.processes import is_first_process
from calibtune.text import visible

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", help="model or PEFT adapter, hub id or folder (default: the artifact's base)")
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="what calibtune fit wrote, or a PEFT adapter")
    add_question_arguments(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="lm_eval's results and samples go here"
    )
    parser.add_argument(
        "--apply-chat-template", action=argparse.BooleanOptionalAction, help="default: as the artifact was fitted"
    )
    add_model_arguments(parser)
    parser.add_argument("--quantization", choices=("none", "nf4"), help="default: as the artifact was fitted")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), help="default: as in the fit, else auto")
    parser.add_argument(
        "--batch-size",
        metavar="N|auto",
        help="default: 16, on a GPU more where prompts are short; 1: each question alone; vLLM makes its own batches; "
        "of api: requests at a time",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate the first N questions of each task")
    parser.add_argument(
        "--shard",
        metavar="K/N",
        help="evaluate the K-th of N equal parts of each task's questions (of the first --limit); report and rescore "
        "put all N output folders together",
    )
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples in the prompt")
    parser.add_argument(
        "--orders",
        metavar="N|all",
        help="ask each question in N cyclic orders of its options, or in as many as it has options, and average the "
        "probabilities: N times the work (default: as the temperature was fitted, else 1)",
    )
    parser.add_argument(
        "--backend",
        choices=("hf-prefix", "hf", "vllm", "api"),
        default="hf-prefix",
        help="hf-prefix (default): lm_eval's, with prompts encoded whole, letters read in float32, and what prompts "
        "share computed once where the model's cache allows it and it saves time; hf: the same without sharing; vllm: "
        "one request a question; api: an OpenAI-compatible server, one request a question",
    )
    parser.add_argument(
        "--model-args",
        type=key_values,
        metavar="K=V,..",
        help="further arguments of vLLM: tensor_parallel_size=2,gpu_memory_utilization=0.8",
    )
    parser.add_argument("--base-url", metavar="URL", help=BASE_URL)
    parser.add_argument(
        "--drop-seen",
        action="store_true",
        help="leave out and count questions that the artifact was fitted on, instead of refusing them",
    )
    parser.add_argument(
        "--hf-hub-log-args",
        type=key_values,
        nargs="+",
        action=Merged,
        metavar="K=V",
        help="push results to the Hugging Face hub as lm_eval does, with the token of HF_TOKEN: "
        "push_results_to_hub=True push_samples_to_hub=True hub_results_org=ORG; private without public_repo=True",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--guard", choices=("winrate",), help="exit with 1 if the artifact lost what alignment gave")
    parser.add_argument(
        "--guard-base", type=Path, metavar="DIR", help="the base's evaluation, with ultrafeedback_winrate"
    )
    parser.add_argument("--margin", type=float, default=0.02, help="loss of win rate that is tolerated (default: 0.02)")


def go_on(args: argparse.Namespace) -> str:
    """Return what is said after Ctrl-C."""
    if getattr(args, "backend", None) == "api":
        return "run the same command again: replies are kept, and the others asked for"
    return "run the same command again: an evaluation begins anew"


def run(args: argparse.Namespace) -> int:
    """Evaluate, and guard where asked."""
    questions = question_spec(args)
    if args.guard:
        if args.guard_base is None or "ultrafeedback_winrate" not in questions.tasks:
            raise UserError(
                "--guard winrate compares win rates; give --guard-base DIR and ultrafeedback_winrate in --tasks"
            )
        if args.shard:
            raise UserError("--guard winrate compares all pairs; leave out --shard, or compare with calibtune report")
        from calibtune.evaluation.guard import check_base

        check_base(args.guard_base, args.margin)
    if is_first_process():
        what, names = visible(str(args.artifact or args.model)), ", ".join(questions.names)
        logger.info("eval: %s on %s, backend %s; starting", what, names, args.backend)
    from calibtune.api import evaluate
    from calibtune.results.table import for_json, numbers_table

    options = {name: getattr(args, name) for name in inspect.signature(evaluate).parameters}
    found = evaluate(**options)
    if not found.results:
        return 0  # not the first process, which alone writes and compares
    if args.json:
        results = {task: for_json(numbers) for task, numbers in found.results.items()}
        values = {"folder": str(found.folder), "questions": found.questions, "results": results}
        print(json.dumps(values), file=args.stdout)
    else:
        for task, numbers in found.results.items():
            print(numbers_table(f"{task}: {found.questions.get(task, 0)} questions", numbers) + "\n")
        words = ["python", "-m", "calibtune", "report", str(args.output), "--output", "report"]
        others = " (with the folders of the other shards)" if args.shard else ""
        print(f"written to {args.output}\nnext{others}: {shlex.join(words)}")
    return _guard(args, found.folder) if args.guard else 0


def _guard(args: argparse.Namespace, written: Path) -> int:
    from calibtune.evaluation.guard import guard

    # Not --output as a whole, which can hold other models' runs.
    verdict = guard(args.guard_base, written, args.margin)
    if not verdict.passed:
        raise WorkFailed(f"--guard winrate: {verdict.sentence()}")
    print(verdict.sentence())
    return 0
