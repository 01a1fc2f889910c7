"""Write a question as a prompt: its text, lettered options, the request for one letter.

The wording is the one of arXiv 2505.01997, Table 1.
"""

import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness_ext.errors import UserError

LETTERS = string.ascii_uppercase
REQUEST = "Answer with only a single letter:"


def check_choices(choices: Sequence[str], where: str) -> None:
    """Check that a question's options can be asked for by letter.

    Args:
        choices: The texts of the options.
        where: Name of the question for errors.

    Raises:
        UserError: ``choices`` is not a list, has fewer than 2 or more than 26 options, or
            contains an empty option or the same one twice.
    """
    if not isinstance(choices, Collection):
        raise UserError(f"{where} has no list of options ({choices!r}); fix or remove the row")
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(
            f"{where} has {len(choices)} options, but letters can label 2 to {len(LETTERS)}; fix or remove the row"
        )
    first: dict[str, str] = {}
    for letter, choice in zip(LETTERS, choices, strict=False):
        if not isinstance(choice, str) or not choice.strip():
            raise UserError(f"{where} has an empty option {letter} ({choice!r}); fix or remove the row")
        if choice in first:
            raise UserError(
                f"{where} has the same option under {first[choice]} and {letter} ({choice!r}); fix or remove the row"
            )
        first[choice] = letter


def doc_to_text(doc: Mapping[str, Any]) -> str:
    r"""Return the user message that asks a question.

    Args:
        doc: A document with ``question`` and ``choices``.

    Returns:
        The question, ``Options:``, a line for each option and the request for one letter, without
        trailing whitespace.

    Raises:
        UserError: The options fail :func:`check_choices`.

    Example:
        >>> print(doc_to_text({"question": "Which is hot?", "choices": ["ice", "fire"]}))
        Which is hot?
        Options:
        A. ice
        B. fire
        Answer with only a single letter:
    """
    check_choices(doc["choices"], f"question {str(doc['question'])[:80]!r}")
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, doc["choices"], strict=False))
    return f"{doc['question']}\nOptions:\n{options}\n{REQUEST}"


def doc_to_choice(doc: Mapping[str, Any]) -> list[str]:
    """Return the letters that are scored for a question, in the order of its prompt.

    Example:
        >>> doc_to_choice({"choices": ["ice", "fire", "wind"]})
        ['A', 'B', 'C']
    """
    return list(LETTERS[: len(doc["choices"])])
