"""How a question is shown: its text, its options under letters, the request for one letter (paper.md section 5)."""

import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness_ext.errors import ScoringError

LETTERS = string.ascii_uppercase
REQUEST = "Answer with only a single letter:"


def check_choices(choices: Sequence[str], where: str) -> None:
    """Refuse options that cannot be told apart under letters.

    Args:
        choices: The texts of the options.
        where: What to call the question in the error.

    Raises:
        ScoringError: No list; fewer than 2 or more than 26 options, an empty one, or two the same.
    """
    if not isinstance(choices, Collection):
        raise ScoringError(f"{where} has no list of options ({choices!r}); mend or remove the row")
    if not 2 <= len(choices) <= len(LETTERS):
        raise ScoringError(f"{where} has {len(choices)} options, letters can name 2 to {len(LETTERS)}; mend the row")
    first: dict[str, str] = {}
    for letter, choice in zip(LETTERS, choices, strict=False):
        if not isinstance(choice, str) or not choice.strip():
            raise ScoringError(f"{where} has an empty option {letter} ({choice!r}); mend or remove the row")
        if choice in first:
            raise ScoringError(
                f"{where} has the same option under {first[choice]} and {letter} ({choice!r}); mend or remove the row"
            )
        first[choice] = letter


def doc_to_text(doc: Mapping[str, Any]) -> str:
    r"""The user's message of a question.

    Args:
        doc: A document of ours, with ``question`` and ``choices``.

    Returns:
        The question, ``Options:``, a line for each option and the request for one letter; no trailing blank.

    Raises:
        ScoringError: The options cannot be told apart, see :func:`check_choices`.

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
    """The letters scored for a question: those shown in its prompt, in the same order.

    Example:
        >>> doc_to_choice({"choices": ["ice", "fire", "wind"]})
        ['A', 'B', 'C']
    """
    return list(LETTERS[: len(doc["choices"])])
