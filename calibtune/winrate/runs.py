"""Run the steps of ``calibtune winrate``: read or generate answers, judge them, compute results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibtune.endpoints.endpoint import Endpoint
from calibtune.endpoints.journal import Journal
from calibtune.errors import UserError
from calibtune.files import write_json
from calibtune.reading import read_rows
from calibtune.winrate import alpaca, arena, pairs
from calibtune.winrate.answers import Answers, Model, Settings, generate
from calibtune.winrate.judge import Judge, Reply
from calibtune.winrate.length import length_controlled
from calibtune.winrate.rates import compare, rate
from calibtune.winrate.results import Result

Row = dict[str, Any]
ROWS = "give a JSON or JSON-lines file of AlpacaEval"


def read_instructions(path: Path, limit: int | None = None) -> list[Row]:
    """Read instructions from AlpacaEval's set or an outputs file, whose other keys are ignored.

    Raises:
        UserError: See :func:`calibtune.reading.read_rows`; or an instruction is not a text or occurs twice.
    """
    rows = [{"instruction": row["instruction"]} for row in read_rows(path, alpaca.Instruction, ROWS)][:limit]
    for number, row in enumerate(rows):
        if not row["instruction"].strip():
            raise UserError(
                f"--instructions {path}, entry {number}: {row['instruction']!r} is not a text; fix or remove the entry"
            )
    if len({row["instruction"] for row in rows}) != len(rows):
        raise UserError(f"--instructions {path} has an instruction twice; keep one of them")
    return rows


def outputs_of(
    model: Model, instructions: Sequence[Row], output: Path, settings: Settings
) -> tuple[list[Row], Answers]:
    """Generate a model's answers, and return them as AlpacaEval model outputs.

    Args:
        model: The model.
        instructions: Rows with ``instruction``.
        output: Output folder of the run.
        settings: Settings of the generation.

    Raises:
        UserError: See :func:`~calibtune.winrate.answers.generate`.
        WorkFailed: See :func:`~calibtune.winrate.answers.generate`.
    """
    answers = generate(model, [row["instruction"] for row in instructions], output / "answers", settings)
    rows = [
        {**row, "output": text, "generator": model.name}
        for row, text in zip(instructions, answers.outputs, strict=True)
    ]
    return rows, answers


def reference_outputs(
    reference: str, instructions: Sequence[Row], output: Path, settings: Settings, extra: tuple[tuple[str, Any], ...]
) -> tuple[list[Row], Answers | None]:
    """Read the reference's answers from a file of AlpacaEval outputs, or generate them.

    Args:
        reference: An outputs file, or a model's folder or hub id. The file may have more
            instructions, in any order.
        instructions: Rows with ``instruction``.
        output: Output folder of the run.
        settings: Settings of the generation.
        extra: Additional ``model_args``.

    Raises:
        UserError: The file lacks an instruction, answers one twice, or an output is not a text.
    """
    path = Path(reference)
    if not path.is_file():
        if path.suffix in (".json", ".jsonl"):
            raise UserError(f"--reference {reference} does not exist; give an outputs file or a model")
        return outputs_of(Model(reference, extra=extra), instructions, output, settings)
    rows = read_rows(path, alpaca.Output, ROWS)
    by_instruction = {row["instruction"]: row for row in rows}
    if len(by_instruction) != len(rows):
        raise UserError(f"--reference {path} answers an instruction twice; keep one of the answers")
    lacking = [row["instruction"] for row in instructions if row["instruction"] not in by_instruction]
    if lacking:
        raise UserError(
            f"--reference {path} lacks {len(lacking)} of {len(instructions)} instructions, such as "
            f"{lacking[0]!r:.80}; give outputs for all --instructions"
        )
    chosen = [by_instruction[row["instruction"]] for row in instructions]
    return [{**row, "generator": row.get("generator") or path.stem} for row in chosen], None


def judge_head_to_head(
    mine: Sequence[Row], theirs: Sequence[Row], judge_name: str, endpoint: Endpoint, output: Path, both_orders: bool
) -> list[Row]:
    """Judge all pairs, resume from ``judgments.jsonl`` if it exists, and write ``annotations.json``.

    Raises:
        UserError: See :func:`pairs.annotate`.
        WorkFailed: Some pairs have no reply yet; all replies so far are stored.
    """
    with Journal(output / "judgments.jsonl", Reply) as journal:
        rows = pairs.annotate(mine, theirs, judge_name, Judge(endpoint, journal), both_orders)
    write_json(output / "annotations.json", rows)
    return rows


def alpaca_result(rows: alpaca.Judged, compared: Path | None) -> Result:
    """Compute the result of judged pairs, and the difference to another run's annotations if given.

    Raises:
        UserError: The other annotations are damaged or have another reference.
        UserError: No pair was judged, or the runs share no question.
    """
    result = alpaca.result(rows, length_controlled(rows))
    bias = pairs.position_bias(rows.rows)
    if bias is not None:
        note = f"{result.note}; judged in both orders, the answer shown first gets {100 * bias:.1f} %"
        result = replace(result, note=note, further={**result.further, "first_shown": bias})
    if compared is None:
        return result
    other = alpaca.read_annotations(compared)
    if other.baseline != rows.baseline:
        raise UserError(
            f"--compare {compared} is against {other.baseline}, not {rows.baseline}; give a run with the same reference"
        )
    return _compared(result, other.model, *compare(rows.scores, other.scores))


def arena_result(bench: arena.Bench, name: str, judge: str | None, category: str | None, other: str | None) -> Result:
    """Compute the result of a model's Arena-Hard judgments, and the difference to another model.

    Raises:
        UserError: See :func:`arena.read_verdicts`.
        UserError: There is no verdict.
    """
    mine = arena.read_verdicts(bench, name, judge, category)
    notes = [arena.NOTE]
    if mine.unjudged:
        notes.append(f"{len(mine.unjudged)} questions without two verdicts are left out")
    if mine.missing:
        notes.append(f"{len(mine.missing)} questions are not judged yet")
    further = {"judge": mine.judge, "unjudged": len(mine.unjudged), "missing": len(mine.missing)}
    found = rate(list(mine.scores.values()), list(mine.weights.values()))
    result = Result("arena_hard", name, mine.baseline, found, "; ".join(notes), further)
    if other is None:
        return result
    theirs = arena.read_verdicts(bench, other, mine.judge, category)
    if theirs.baseline != mine.baseline:
        raise UserError(
            f"--compare {other} was judged against {theirs.baseline}, not {mine.baseline}; give a model with the same "
            "baseline"
        )
    return _compared(result, other, *compare(mine.scores, theirs.scores, (mine.weights, theirs.weights)))


def with_answers(result: Result, model: Model, answers: Sequence[Answers | None]) -> Result:
    """Return the result with notes on how the answers were generated."""
    generated = [each for each in answers if each is not None]
    notes = [result.note]
    if any(not each.chat_template for each in generated):
        notes.append("no chat template: prompts are the questions alone")
    cut, empty = sum(each.cut for each in generated), sum(not text.strip() for a in generated for text in a.outputs)
    notes += [f"{cut} prompts were cut at the beginning to fit the context"] * bool(cut)
    notes += [f"{empty} answers are empty"] * bool(empty)
    return replace(result, note="; ".join(notes), model_args=model.model_args())


def _compared(result: Result, other: str, difference: tuple[float, float, float], shared: int) -> Result:
    estimate, low, high = difference
    note = (
        f"{result.note}; against {other} on {shared} shared questions {100 * estimate:+.2f} points, paired 95 % "
        f"interval [{100 * low:+.2f}, {100 * high:+.2f}]"
    )
    further = {"compared_with": other, "difference": estimate, "difference_low": low, "difference_high": high}
    return replace(result, note=note, further={**result.further, **further, "shared": shared})
