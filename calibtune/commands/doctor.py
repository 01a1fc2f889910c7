"""Check the installation; with a model and tasks, also their letters.

  python -m calibtune doctor
  python -m calibtune doctor --model M --tasks mc_calib_arc --apply-chat-template
  python -m calibtune doctor --backend api --base-url http://localhost:8000/v1 --model NAME    # a server

Exit code 0: all is well. 1: something is not, and the line says what to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibtune.commands.models import BASE_URL, add_model_arguments
from calibtune.commands.questions import add_question_arguments, question_spec
from calibtune.errors import UserError

if TYPE_CHECKING:
    from calibtune.spec import ModelSpec

#: What is asked where nothing is named.
TASK = "mc_calib_arc"
#: What is handed on as it was given.
GIVEN = ("apply_chat_template", "chat_template_args", "add_bos_token", "precision", "device", "trust_remote_code")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", help="model or PEFT adapter, hub id or folder (default: the artifact's base)")
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="what calibtune fit wrote, or a PEFT adapter")
    add_question_arguments(parser, TASK)
    parser.add_argument(
        "--apply-chat-template", action=argparse.BooleanOptionalAction, help="default: as the artifact was fitted"
    )
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), help="default: as in the fit, else auto")
    add_model_arguments(parser)
    parser.add_argument("--backend", choices=("hf", "api"), default="hf", help="api: look at a server's letters")
    parser.add_argument("--base-url", metavar="URL", help=BASE_URL)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print one line for each check."""
    from calibtune.evaluation.doctor import check_installation

    findings = check_installation()
    for finding in findings:
        print(finding.line())
    if args.model or args.artifact:
        for finding in _check_server(args) if args.backend == "api" else _check_model(args):
            print(finding.line(), flush=True)
            findings.append(finding)
    bad = sum(not finding.good for finding in findings)
    if args.json:
        checks = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"good": not bad, "checks": checks}), file=args.stdout)
        return int(bad > 0)
    print(f"{len(findings) - bad} of {len(findings)} checks passed")
    if not (args.model or args.artifact):
        print("next: python -m calibtune doctor --model M --tasks mc_calib_arc [--apply-chat-template]")
    return int(bad > 0)


def _check_server(args):  # type: ignore[no-untyped-def]
    from calibtune.data.source import load_questions
    from calibtune.evaluation.api_letters import check_letter_tasks
    from calibtune.evaluation.doctor_api import check_server
    from calibtune.evaluation.evaluate import EvaluationOptions, check_options

    questions = question_spec(args, TASK)
    named = {"model": args.model, "revision": args.revision, "backend": args.backend, "base_url": args.base_url}
    options = EvaluationOptions(questions.names, Path(), **named, **{name: getattr(args, name) for name in GIVEN})
    if args.artifact:
        raise UserError(
            "--artifact lies here, and --backend api looks at a server; give the model's name there as --model"
        )
    check_options(options)
    _, tasks = load_questions(questions)
    check_letter_tasks(tasks)
    yield from check_server(args.base_url, options.spec(None), tasks)


def _check_model(args):  # type: ignore[no-untyped-def]
    from calibtune.artifacts.manifest import read_artifact
    from calibtune.artifacts.named import named
    from calibtune.data.encoder import Encoder
    from calibtune.data.examples import Prompts
    from calibtune.data.source import load_questions
    from calibtune.data.tokens import PAD, tokenize
    from calibtune.evaluation.checks import check_model
    from calibtune.evaluation.doctor import SCORED, check_letters, check_mass, other_prompt
    from calibtune.evaluation.evaluate import EvaluationOptions, model_arguments
    from calibtune.models.loading import context_length, load_config
    from calibtune.models.scores import score
    from harness_ext.calibration import letter_mass

    name, folder, revision = named(args.model, args.artifact, args.revision)
    artifact = None if folder is None else read_artifact(folder)
    named_so = {"model": name, "revision": revision, "artifact": folder}
    options = EvaluationOptions((), Path(), **named_so, **{name: getattr(args, name) for name in GIVEN})
    spec = options.spec(artifact)
    arguments = model_arguments(options, spec, artifact)
    tokenizer = check_model(spec, arguments)
    length = context_length(load_config(spec), tokenizer)
    encoder, chat = Encoder(tokenizer, spec), spec.apply_chat_template
    _, tasks = load_questions(question_spec(args, TASK))
    for task in tasks:
        if task.OUTPUT_TYPE != "multiple_choice":
            raise UserError(f"--tasks {task.task_name} is {task.OUTPUT_TYPE}, it has no letters; give another task")
    model = None
    for task in tasks:
        found = check_letters(task, encoder, chat)
        yield from found
        if all(finding.good for finding in found):
            prompts = Prompts(task, encoder, chat)
            examples = [prompts.example(doc) for doc in list(task.eval_docs)[:SCORED]]
            model = model or _load(spec, arguments)
            questions = tokenize(examples, encoder, length)
            scores = score(model, questions, PAD, batch_size=1)
            yield check_mass(task.task_name, letter_mass(scores), len(scores), other_prompt(tokenizer, spec))


def _load(spec: ModelSpec, arguments: dict[str, Any]) -> Any:
    from calibtune.models.adapters import load_adapter
    from calibtune.models.loading import load_base

    model = load_base(dataclasses.replace(spec, name=arguments["pretrained"], revision=arguments.get("revision")))
    return load_adapter(model, Path(arguments["peft"])) if "peft" in arguments else model
