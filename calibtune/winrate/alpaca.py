"""Read AlpacaEval's files and compute its win rates with the package ``alpaca-eval`` (0.6.6).

An annotation's preference is from 1 (the reference wins, ``output_1``) to 2 (the model wins,
``output_2``). 1.5 is a draw, and so is 0 in old files. The model's score is the preference minus 1.
"""

from __future__ import annotations

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

from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict

from calibtune.errors import UserError
from calibtune.reading import read_rows
from calibtune.winrate.rates import Rate, rate
from calibtune.winrate.results import LengthControlled, Result

#: Preference that alpaca-eval stores if it cannot parse the judge's reply.
MISSING = -1


class Instruction(TypedDict):
    """Describe an entry of AlpacaEval's set."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    instruction: str


class Output(Instruction):
    """Describe an entry of an outputs file."""

    output: str
    generator: NotRequired[str | None]


class Annotation(Instruction):
    """Describe an entry of an ``annotations.json``."""

    preference: float | str | None
    generator_1: NotRequired[str | None]
    generator_2: NotRequired[str | None]
    annotator: NotRequired[str | None]
    preference_reference_first: NotRequired[float | None]
    preference_model_first: NotRequired[float | None]


@dataclass(frozen=True)
class Judged:
    """Hold the judged pairs of a model and a reference."""

    model: str
    baseline: str
    #: Names of the judges, usually one.
    judges: tuple[str, ...]
    #: The model's score on each instruction, in [0, 1], in the file's order.
    scores: dict[str, float]
    #: Instructions without a verdict, such as refusals, which the win rate leaves out.
    unjudged: tuple[str, ...]
    #: The annotations, as alpaca-eval writes them.
    rows: tuple[dict[str, Any], ...]


@contextmanager
def package() -> Iterator[ModuleType]:
    """Import alpaca-eval, but keep it from changing or using the root logger.

    Yields:
        The module ``alpaca_eval``.

    Raises:
        UserError: alpaca-eval is not installed, or setuptools is too new for it.
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
    # It logs a traceback for each reply that it cannot parse; the result's note counts them instead.
    root.addFilter(_not_from_alpaca_eval)
    try:
        yield alpaca_eval
    finally:
        root.removeFilter(_not_from_alpaca_eval)
        root.setLevel(level)


def _not_from_alpaca_eval(record: logging.LogRecord) -> bool:
    return "alpaca_eval" not in record.pathname


def read_annotations(path: Path) -> Judged:
    """Read an ``annotations.json`` of alpaca-eval.

    Raises:
        UserError: See :func:`calibtune.reading.read_rows` and :func:`judged`.
    """
    return judged(read_rows(path, Annotation, "give annotations of alpaca-eval"), str(path))


def judged(rows: Sequence[dict[str, Any]], source: str) -> Judged:
    """Check annotations and convert preferences to scores.

    Args:
        rows: Annotations of alpaca-eval.
        source: Name of their file for errors.

    Raises:
        UserError: An instruction occurs twice, a preference is out of range, or there is more than
            one model or reference.
    """
    twice = [text for text, count in Counter(str(row["instruction"]) for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{source}: {twice[0]!r:.80} is judged more than once; keep one of its rows")
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
    """Compute win rate and standard error with alpaca-eval, and add a bootstrap interval.

    Raises:
        UserError: No pair was judged.
    """
    ours = rate(list(pairs.scores.values()))
    with package() as alpaca_eval:
        theirs = alpaca_eval.metrics.get_winrate([{"preference": score + 1} for score in pairs.scores.values()])
    return Rate(float(theirs["win_rate"]) / 100, float(theirs["standard_error"]) / 100, ours.low, ours.high, ours.n)


def result(pairs: Judged, controlled: LengthControlled) -> Result:
    """Compute the result of judged pairs: win rate, length-controlled win rate, and notes.

    Raises:
        UserError: No pair was judged.
    """
    notes = ["interval by bootstrap over instructions", controlled.said]
    if pairs.unjudged:
        notes.append(f"{len(pairs.unjudged)} of {len(pairs.rows)} pairs have no verdict and are left out")
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
        raise UserError(f"{where}: the preference is {value!r}, not in [1, 2]; give annotations of alpaca-eval")
    return number


def _single(rows: Sequence[dict[str, Any]], key: str, otherwise: str, source: str) -> str:
    names = sorted({str(row[key]) for row in rows if row.get(key)})
    if len(names) > 1:
        raise UserError(
            f"{source}: {key} is {names[0]!r} in some rows and {names[1]!r} in others; give annotations of one model "
            "and one reference"
        )
    return names[0] if names else otherwise
