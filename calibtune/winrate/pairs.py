"""Judging two models' answers pair by pair with alpaca-eval's annotator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from calibtune.errors import UserError, WorkFailed
from calibtune.winrate.alpaca import package
from calibtune.winrate.judge import Judge

Row = dict[str, Any]


def annotate(
    model: Sequence[Row], reference: Sequence[Row], judge_name: str, judge: Judge, both_orders: bool = False
) -> list[Row]:
    """Have each pair of answers judged.

    Args:
        model: Outputs of AlpacaEval: ``instruction``, ``output``, ``generator``.
        reference: The same of the reference, for the same instructions.
        judge_name: A judge of alpaca-eval (``weighted_alpaca_eval_gpt4_turbo``, or a folder with ``configs.yaml``), or
            any other model's name, which is then asked as AlpacaEval 2's judge is.
        judge: Asks and keeps the replies.
        both_orders: Judge each pair twice, each answer shown first once, and take the mean; otherwise alpaca-eval shows
            one of them first at random, seeded by the instruction.

    Returns:
        Annotations as alpaca-eval writes them, in the reference's order; ``preference`` is None without a verdict. With
        both orders also ``preference_reference_first`` and ``preference_model_first``.

    Raises:
        UserError: The two do not answer the same instructions, or the judge's configuration does not fit.
        WorkFailed: Replies are missing, or none could be read.
    """
    _check_same_instructions(model, reference)
    with package() as alpaca_eval:
        annotator = _annotator(alpaca_eval, judge_name, judge, randomize=not both_orders)
        rows = _head_to_head(annotator, reference, model)
        if both_orders:
            swapped = _head_to_head(annotator, model, reference)
            rows = [_mean(row, other) for row, other in zip(rows, _in_order(swapped, rows), strict=True)]
    for row in rows:
        row["annotator"] = _shown(judge_name, row["annotator"])
    if all(row["preference"] is None for row in rows):
        said = judge.rejections[0] if judge.rejections else judge.first_reply
        raise WorkFailed(
            f"none of the {len(rows)} replies of judge {judge_name} could be read (first: {said[:200]!r}); "
            "choose a judge whose endpoint returns what its configuration asks for"
        )
    return rows


def position_bias(rows: Sequence[Row]) -> float | None:
    """Mean preference for the answer shown first, as a share; 0.5 is no bias. None unless both orders were judged."""
    shown = [
        2 - (row["preference_reference_first"] + 3 - row["preference_model_first"]) / 2
        for row in rows
        if row.get("preference_reference_first") is not None and row.get("preference_model_first") is not None
    ]
    return sum(shown) / len(shown) if shown else None


def _annotator(alpaca_eval: ModuleType, name: str, judge: Judge, randomize: bool) -> Any:
    folder = Path(alpaca_eval.constants.EVALUATORS_CONFIG_DIR)
    known = (folder / name / "configs.yaml").is_file()
    local = os.sep in name and (Path(name) / "configs.yaml").is_file()
    config = str(Path(name).resolve()) if local else name if known else alpaca_eval.constants.ANNOTATOR_CONFIG_AE2
    for settings in alpaca_eval.utils.load_configs(folder / config).values():
        asks = settings.get("fn_completions", "openai_completions")
        if asks != "openai_completions":
            raise UserError(f"--judge {name} asks through {asks}, not OpenAI's chat completions; choose another judge")
    # caching_path=None: the journal keeps replies, and "auto" would write into the installed package.
    annotator = alpaca_eval.annotators.PairwiseAnnotator(annotators_config=config, caching_path=None)
    for single in annotator.annotators.values():
        single.fn_completions = judge
        if not (known or local):
            single.completions_kwargs = {**single.completions_kwargs, "model_name": name}
        if not randomize:
            switch = alpaca_eval.processors.RandomSwitchTwoColumnsProcessor
            single.processors = [p for p in single.processors if not isinstance(p, switch)]
    return annotator


def _head_to_head(annotator: Any, first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    keys = ("instruction", "output", "generator")
    given = [[{key: row.get(key) for key in keys} for row in outputs] for outputs in (first, second)]
    # One chunk: the journal, not the chunk, is what keeps replies.
    rows = annotator.annotate_head2head(outputs_1=given[0], outputs_2=given[1], chunksize=None)
    # pandas' NaN is no JSON: a missing verdict, or a price that nobody knows.
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    return _in_order(rows, first)


def _in_order(rows: Sequence[Row], like: Sequence[Row]) -> list[Row]:
    by_instruction = {row["instruction"]: row for row in rows}
    return [by_instruction[row["instruction"]] for row in like]


def _mean(row: Row, swapped: Row) -> Row:
    first, second = row["preference"], swapped["preference"]
    model_first = None if second is None else 3 - second
    mean = None if first is None or model_first is None else (first + model_first) / 2
    return {**row, "preference": mean, "preference_reference_first": first, "preference_model_first": model_first}


def _shown(name: str, config: Any) -> str:
    return name if name == config or os.sep in name else f"{name} ({config})"


def _check_same_instructions(model: Sequence[Row], reference: Sequence[Row]) -> None:
    texts = [[row["instruction"] for row in outputs] for outputs in (model, reference)]
    for which, instructions in zip(("model", "reference"), texts, strict=True):
        if len(set(instructions)) != len(instructions):
            raise UserError(f"the {which}'s outputs answer an instruction twice, which would count twice; keep one")
    other = set(texts[0]) ^ set(texts[1])
    if other:
        raise UserError(
            f"model and reference differ in {len(other)} instructions (one: {min(other)!r:.80}); give a "
            "--reference that answers --instructions"
        )
