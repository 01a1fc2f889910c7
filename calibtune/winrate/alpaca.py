"""AlpacaEval's files and rates, through the package ``alpaca-eval`` (0.6.6).

An annotation's preference runs from 1 (the reference, ``output_1``) to 2 (the model, ``output_2``); 1.5, and 0 in old
files, is a draw. Preference minus 1 is the model's score.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from calibtune.errors import UserError
from calibtune.winrate.rates import Rate, rate
from calibtune.winrate.results import LengthControlled, Result

#: What alpaca-eval stores for a pair whose judgment could not be read.
MISSING = -1


@dataclass(frozen=True)
class Judged:
    """The judged pairs of one model against one reference."""

    model: str
    baseline: str
    #: Names of the judges, usually one.
    judges: tuple[str, ...]
    #: Score by instruction, within [0, 1]; in the file's order.
    scores: dict[str, float]
    #: Instructions without a readable judgment (refusals among them), which the rate leaves out as alpaca-eval does.
    unjudged: tuple[str, ...]
    #: The rows, as alpaca-eval writes them.
    rows: tuple[dict[str, Any], ...]


@contextmanager
def package() -> Iterator[ModuleType]:
    """Import alpaca-eval without its changing the root logger's level or logging to it.

    Yields:
        The module ``alpaca_eval``.

    Raises:
        UserError: It is not installed, or setuptools is too new for it.
    """
    root = logging.getLogger()
    level = root.level
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            import alpaca_eval
            import alpaca_eval.annotators
            import alpaca_eval.metrics
    except ImportError as error:
        raise UserError(
            f"alpaca-eval cannot be imported ({error}); install it with: pip install 'calibtune[winrate]'"
        ) from error
    finally:
        root.setLevel(level)
    # It logs a traceback for each verdict that it cannot read; those are counted in the result's note.
    root.addFilter(_not_from_alpaca_eval)
    try:
        yield alpaca_eval
    finally:
        root.removeFilter(_not_from_alpaca_eval)
        root.setLevel(level)


def _not_from_alpaca_eval(record: logging.LogRecord) -> bool:
    return "alpaca_eval" not in record.pathname


def read_rows(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Read a list of objects from a JSON or JSON-lines file.

    Args:
        path: The file.
        needed: Keys that every row must have.

    Raises:
        UserError: It is missing, damaged, empty, or a row lacks a key; the row is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a JSON or JSON-lines file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; give a JSON or JSON-lines file") from None
    try:
        # Not splitlines(), which also splits at the U+2028 that texts may hold.
        lines = [line for line in text.split("\n") if line.strip()]
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not whole JSON ({error}); fetch or write it again") from None
    if not rows:
        raise UserError(f"{path} is empty; give a list of objects with {', '.join(needed)}")
    for number, row in enumerate(rows):
        lacking = [key for key in needed if key not in row] if isinstance(row, dict) else list(needed)
        if lacking:
            raise UserError(f"{path}, entry {number}: no {lacking[0]!r} there; give objects with {', '.join(needed)}")
    return rows


def read_annotations(path: Path) -> Judged:
    """Read an ``annotations.json`` of alpaca-eval.

    Raises:
        UserError: See :func:`read_rows` and :func:`judged`.
    """
    return judged(read_rows(path, ["instruction", "preference"]), str(path))


def judged(rows: Sequence[dict[str, Any]], source: str) -> Judged:
    """Check annotations and turn them into scores.

    Args:
        rows: Annotations of alpaca-eval.
        source: Where they come from, for errors.

    Raises:
        UserError: An instruction is there twice, so that it would count twice; a preference is out of range; two
            models or references are mixed.
    """
    twice = [text for text, count in Counter(str(row["instruction"]) for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{source}: {twice[0]!r:.80} is judged more than once; keep one row of it")
    scores, unjudged = {}, []
    for number, row in enumerate(rows):
        value = _preference(row["preference"], f"{source}, entry {number}")
        if value is None:
            unjudged.append(row["instruction"])
        else:
            scores[row["instruction"]] = value - 1
    return Judged(
        model=_single(rows, "generator_2", "model", source),
        baseline=_single(rows, "generator_1", "reference", source),
        judges=tuple(sorted({str(row["annotator"]) for row in rows if row.get("annotator")})),
        scores=scores,
        unjudged=tuple(unjudged),
        rows=tuple(rows),
    )


def published_rate(pairs: Judged) -> Rate:
    """Win rate and standard error by alpaca-eval's own ``get_winrate``, with our bootstrap interval.

    Raises:
        UserError: No pair was judged.
    """
    ours = rate(list(pairs.scores.values()))
    with package() as alpaca_eval:
        theirs = alpaca_eval.metrics.get_winrate([{"preference": score + 1} for score in pairs.scores.values()])
    return Rate(float(theirs["win_rate"]) / 100, float(theirs["standard_error"]) / 100, ours.low, ours.high, ours.n)


def result(pairs: Judged, controlled: LengthControlled) -> Result:
    """Return the win rate of judged pairs with its interval, the length-controlled rate and what was left out.

    Raises:
        UserError: No pair was judged.
    """
    notes = ["interval by bootstrap over instructions", controlled.said]
    if pairs.unjudged:
        notes.append(f"{len(pairs.unjudged)} of {len(pairs.rows)} pairs have no readable verdict and are left out")
    further = {
        "length_controlled_win_rate": controlled.win_rate,
        "length_controlled_standard_error": controlled.standard_error,
        "judge": ", ".join(pairs.judges) or None,
        "unjudged": len(pairs.unjudged),
    }
    return Result("alpaca_eval", pairs.model, pairs.baseline, published_rate(pairs), "; ".join(notes), further)


def _preference(value: Any, where: str) -> float | None:
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isnan(number) or number == MISSING:
        return None
    if number == 0:
        return 1.5
    if not 1 <= number <= 2:
        raise UserError(f"{where}: the preference is {value!r}, not within [1, 2]; give annotations of alpaca-eval")
    return number


def _single(rows: Sequence[dict[str, Any]], key: str, otherwise: str, source: str) -> str:
    names = sorted({str(row[key]) for row in rows if row.get(key)})
    if len(names) > 1:
        raise UserError(f"{source}: {key} is {names[0]!r} and {names[1]!r}; give the annotations of one pair of models")
    return names[0] if names else otherwise
