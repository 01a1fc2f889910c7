"""Check the installation; with a model and tasks, also their letters.

  python -m calibtune doctor
  python -m calibtune doctor --model M --tasks mc_calib_arc --apply-chat-template

Exit code 0: all is well. 1: something is not, and the line says what to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from calibtune.commands.models import add_model_arguments
from calibtune.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", help="hub id or folder")
    parser.add_argument("--tasks", default="mc_calib_arc", metavar="T[,T]", help="default: mc_calib_arc")
    parser.add_argument("--apply-chat-template", action="store_true", help="render prompts as chat")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bf16 where it is fast",
    )
    add_model_arguments(parser)
    parser.add_argument("--include-path", metavar="DIR", help="folder of further task YAMLs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print one line for each check."""
    from calibtune.evaluation.doctor import check_installation

    findings = check_installation()
    for finding in findings:
        print(finding.line())
    if args.model:
        for finding in _check_model(args):
            print(finding.line(), flush=True)
            findings.append(finding)
    bad = sum(not finding.good for finding in findings)
    if args.json:
        checks = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"good": not bad, "checks": checks}), file=args.stdout)
        return int(bad > 0)
    print(f"{len(findings) - bad} of {len(findings)} checks passed")
    if not args.model:
        print("next: python -m calibtune doctor --model M --tasks mc_calib_arc [--apply-chat-template]")
    return int(bad > 0)


def _check_model(args):  # type: ignore[no-untyped-def]
    from calibtune.data.encoder import Encoder
    from calibtune.data.examples import Prompts
    from calibtune.data.tasks import load_tasks
    from calibtune.data.tokens import PAD, tokenize
    from calibtune.evaluation.doctor import SCORED, check_letters, check_mass
    from calibtune.models.loading import check_spec, context_length, load_base, load_config, load_tokenizer
    from calibtune.models.scores import score
    from calibtune.spec import ModelSpec
    from harness_ext.calibration import letter_mass

    names = ("revision", "precision", "device", "apply_chat_template", "add_bos_token", "trust_remote_code")
    given = {name: getattr(args, name) for name in names}
    spec = ModelSpec(args.model, chat_template_args=args.chat_template_args or {}, **given)
    check_spec(spec)
    tokenizer = load_tokenizer(spec)
    length = context_length(load_config(spec), tokenizer)
    encoder = Encoder(tokenizer, spec)
    names = tuple(task.strip() for task in args.tasks.split(",") if task.strip())
    if not names:
        raise UserError("--tasks names no task; give one or more, separated by commas")
    tasks = load_tasks(names, args.include_path)
    for task in tasks:
        if task.OUTPUT_TYPE != "multiple_choice":
            raise UserError(f"--tasks {task.task_name} is {task.OUTPUT_TYPE}, it has no letters; give another task")
    model = None
    for task in tasks:
        found = check_letters(task, encoder, args.apply_chat_template)
        yield from found
        if all(finding.good for finding in found):
            prompts = Prompts(task, encoder, args.apply_chat_template)
            examples = [prompts.example(doc) for doc in list(task.eval_docs)[:SCORED]]
            model = model or load_base(spec)
            questions = tokenize(examples, encoder, length)
            scores = score(model, questions, PAD, batch_size=1)
            yield check_mass(task.task_name, letter_mass(scores), len(scores), args.apply_chat_template)
