"""Declare the flags of a model that eval and doctor share; fit has them from the recipe."""

from __future__ import annotations

import argparse
from typing import Any

from pydantic_core import from_json

#: Help of the address of ``--backend api``.
BASE_URL = "of --backend api: the server's address, which ends in /v1 (default: OpenAI's); key in OPENAI_API_KEY"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how a model is loaded and prompted."""
    parser.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    parser.add_argument(
        "--chat-template-args", type=json_object, metavar="JSON", help="further arguments of the chat template"
    )
    parser.add_argument(
        "--add-bos-token",
        action=argparse.BooleanOptionalAction,
        help="begin prompts with the tokenizer's beginning-of-text token (default: as the tokenizer does)",
    )
    parser.add_argument("--device", help="cuda, cpu, mps; found by itself where not given")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


class Merged(argparse.Action):
    """Merge arguments ``K=V`` that are separated by blanks into one dictionary, as lm_eval's flags do."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Add these to those of the same flag before them."""
        setattr(namespace, self.dest, dict(getattr(namespace, self.dest) or {}))
        for each in values:
            getattr(namespace, self.dest).update(each)


def json_object(text: str) -> dict[str, Any]:
    """Return a JSON object that was given as text.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        value = from_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r:.80} is no JSON object; give one such as '{{\"enable_thinking\": false}}'"
        )
    return value


def key_values(text: str) -> dict[str, Any]:
    """Return arguments that were given as ``K=V,K=V``, as lm_eval's ``--model_args``.

    Raises:
        argparse.ArgumentTypeError: One of them has no name or no value.

    Example:
        >>> key_values("dtype=bfloat16,tensor_parallel_size=2,enforce_eager=True")
        {'dtype': 'bfloat16', 'tensor_parallel_size': 2, 'enforce_eager': True}
    """
    found: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise argparse.ArgumentTypeError(f"{pair!r:.80} is not an argument K=V")
        try:
            found[name] = from_json(value.lower() if value in ("True", "False") else value)
        except ValueError:
            found[name] = value
    return found
