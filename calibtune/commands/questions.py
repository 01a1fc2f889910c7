"""Declare the options that name questions, alike in all commands that ask some."""

from __future__ import annotations

import argparse
import dataclasses

from calibtune.errors import UserError
from calibtune.recipe import FIELDS, flag
from calibtune.spec import QuestionSpec


def add_question_arguments(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Declare ``--tasks``, ``--data`` and what belongs to them.

    Args:
        parser: The command's.
        default: The task that is asked where nothing is named, for the help.
    """
    shown = f" (default: {default})" if default else ""
    parser.add_argument("--tasks", default="", metavar="T[,T]", help="harness tasks, separated by commas" + shown)
    parser.add_argument("--include-path", metavar="DIR", help="folder of further task YAMLs")
    parser.add_argument("--data", metavar="FILE", help="own questions: JSONL, CSV, Parquet, or a data set's id")
    parser.add_argument("--columns", default="", help=FIELDS["columns"].metadata["help"])
    for name in ("skip_bad_rows", "as_letters"):
        parser.add_argument(flag(name), action="store_true", help=FIELDS[name].metadata["help"])


def question_spec(args: argparse.Namespace, default: str = "") -> QuestionSpec:
    """Return what the options of :func:`add_question_arguments` name.

    Args:
        args: The command's.
        default: The task where nothing is named.

    Raises:
        UserError: They name nothing.
    """
    given = {item.name: getattr(args, item.name) for item in dataclasses.fields(QuestionSpec)}
    named = args.tasks or ("" if args.data else default)
    spec = QuestionSpec(**{**given, "tasks": tuple(name.strip() for name in named.split(",") if name.strip())})
    if not spec.names:
        raise UserError("--tasks names no task; give one or more, separated by commas, or --data FILE")
    return spec
