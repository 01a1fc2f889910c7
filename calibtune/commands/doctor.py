"""Check the installation; with a model and tasks, also their letters.

  python -m calibtune doctor
  python -m calibtune doctor --model M --tasks mc_calib_arc --apply-chat-template

Exit code 0: all is well. 1: something is not, and the line says what to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibtune.commands.models import add_model_arguments
from calibtune.commands.questions import add_question_arguments, question_spec
from calibtune.errors import UserError

if TYPE_CHECKING:
    from calibtune.spec import ModelSpec

#: What is asked where nothing is named.
TASK = "mc_calib_arc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", help="model or PEFT adapter, hub id or folder")
    add_question_arguments(parser, TASK)
    parser.add_argument("--apply-chat-template", action="store_true", help="render prompts as chat")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bf16 where it is fast",
    )
    add_model_arguments(parser)
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
    from calibtune.artifacts.manifest import base_model, read_artifact, tokenizer_folder
    from calibtune.artifacts.named import named
    from calibtune.data.encoder import Encoder
    from calibtune.data.examples import Prompts
    from calibtune.data.source import load_questions
    from calibtune.data.tokens import PAD, tokenize
    from calibtune.evaluation.doctor import SCORED, check_letters, check_mass
    from calibtune.models.loading import check_spec, context_length, load_config, load_tokenizer
    from calibtune.models.scores import score
    from calibtune.spec import ModelSpec
    from harness_ext.calibration import letter_mass

    name, adapter, revision = named(args.model, None, args.revision)
    artifact = None if adapter is None else read_artifact(adapter)
    names = ("precision", "device", "apply_chat_template", "add_bos_token", "trust_remote_code")
    given = {name: getattr(args, name) for name in names}
    revision = revision if artifact is None else artifact.revision
    spec = ModelSpec(base_model(name, artifact), revision, chat_template_args=args.chat_template_args or {}, **given)
    check_spec(spec)
    folder = tokenizer_folder(artifact)
    tokenizer = load_tokenizer(spec if folder is None else dataclasses.replace(spec, name=str(folder), revision=None))
    length = context_length(load_config(spec), tokenizer)
    encoder = Encoder(tokenizer, spec)
    _, tasks = load_questions(question_spec(args, TASK))
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
            model = model or _load(spec, adapter)
            questions = tokenize(examples, encoder, length)
            scores = score(model, questions, PAD, batch_size=1)
            yield check_mass(task.task_name, letter_mass(scores), len(scores), args.apply_chat_template)


def _load(spec: ModelSpec, adapter: Path | None) -> Any:
    from calibtune.models.adapters import load_adapter
    from calibtune.models.loading import load_base

    model = load_base(spec)
    return model if adapter is None else load_adapter(model, adapter)
