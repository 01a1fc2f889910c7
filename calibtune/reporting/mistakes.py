"""Find the most confident mistakes of a model, with their questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibtune.reading import Record, parse_json, read_lines
from calibtune.reporting.numbers import letter_name
from calibtune.reporting.questions import Questions
from harness_ext.calibration import letter_log_softmax, top

#: Mistakes that are shown.
MOST = 10
#: Letters of a question or option that are shown.
LENGTH = 600


class Asked(Record):
    """Hold what a line of a samples file says of its question."""

    doc: dict[str, Any]
    arguments: dict[str, Any] | None = None


def mistakes(questions: Questions, temperature: float, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the most confident mistakes, the most confident first.

    Args:
        questions: The questions with the model's log-likelihoods.
        temperature: T > 0.
        paths: Samples files that hold the questions.

    Returns:
        Up to ``MOST`` rows with ``question``, ``options``, ``chosen`` and ``right`` (letters) and ``confidence``;
        question and options are empty where the files do not tell them.
    """
    confidence, predicted = top(np.exp(letter_log_softmax(questions.loglikelihoods, temperature)))
    wrong = np.flatnonzero(predicted != questions.gold)
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST].tolist()
    # In a pooled task the name of the question's own task comes first.
    hashes = {row: questions.keys[row][0].split()[-1] for row in rows}
    asked = _asked(paths, set(hashes.values())) if rows else {}
    found = []
    for row in rows:
        text, options = asked.get(hashes[row], ("", []))
        letters = {"chosen": letter_name(predicted[row]), "right": letter_name(questions.gold[row])}
        found.append({"question": text, "options": options, **letters, "confidence": float(confidence[row])})
    return found


def _asked(paths: Iterable[Path], hashes: set[str]) -> dict[str, tuple[str, list[str]]]:
    """Return question and options of the documents with these hashes; only their lines are parsed."""
    found: dict[str, tuple[str, list[str]]] = {}
    wanted = {text: text.encode() for text in hashes}
    for path in paths:
        for number, line in read_lines(path):
            for text in [text for text, own in wanted.items() if own in line]:
                found[text] = _question(parse_json(line, Asked, f"{path}, line {number}"))
                del wanted[text]
            if not wanted:
                return found
    return found


def _question(asked: Asked) -> tuple[str, list[str]]:
    doc = asked.doc
    text = next((doc[name] for name in ("question", "question_stem", "query") if isinstance(doc.get(name), str)), "")
    options = doc.get("choices", doc.get("options"))
    options = options.get("text") if isinstance(options, Mapping) else options
    if options is None:
        options = [doc.get(name) for name in ("opa", "opb", "opc", "opd")]
    if text and isinstance(options, Sequence) and all(isinstance(option, str) for option in options):
        return shown(text), [shown(option) for option in options]
    # Documents of other tasks: the prompt shows question and options.
    first: Any = next(iter((asked.arguments or {}).values()), {})
    prompt = first.get("arg_0") if isinstance(first, Mapping) else None
    return (" ".join(prompt.split())[-LENGTH:] if isinstance(prompt, str) else ""), []


def shown(text: str) -> str:
    """Return a text in one line of up to ``LENGTH`` letters."""
    text = " ".join(text.split())
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"
