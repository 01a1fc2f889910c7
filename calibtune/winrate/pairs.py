"""Judge two models' answers pair by pair with alpaca-eval's annotator."""

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
    """Judge each pair of answers.

    Args:
        model: The model's outputs: ``instruction``, ``output``, ``generator``.
        reference: The reference's outputs for the same instructions.
        judge_name: A judge of alpaca-eval (``weighted_alpaca_eval_gpt4_turbo``, or a folder with
            ``configs.yaml``), or the name of any model, which then gets the prompt of AlpacaEval 2.
        judge: Sender of the requests.
        both_orders: Judge each pair in both orders and average the preferences. Otherwise
            alpaca-eval draws the order, seeded by the instruction.

    Returns:
        Annotations as alpaca-eval writes them, in the reference's order; ``preference`` is None
        without a verdict. With both orders they also have ``preference_reference_first`` and
        ``preference_model_first``.

    Raises:
        UserError: Model and reference answer different instructions, or the judge's configuration
            is not supported.
        WorkFailed: Replies are missing, or none could be parsed.
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
            f"none of the {len(rows)} replies of judge {judge_name} could be parsed (first: {said[:200]!r}); "
            "choose a judge that answers in the format that its configuration asks for"
        )
    return rows


def position_bias(rows: Sequence[Row]) -> float | None:
    """Return the mean preference for the answer shown first, in [0, 1]; 0.5 means no bias.

    Returns None if the pairs were not judged in both orders.
    """
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
            raise UserError(f"--judge {name} uses {asks}, not OpenAI's chat completions; choose another judge")
    # The journal stores replies; caching_path="auto" would write into the installed package.
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
    # Chunks are not needed to store replies, which the journal does.
    rows = annotator.annotate_head2head(outputs_1=given[0], outputs_2=given[1], chunksize=None)
    # Missing verdicts and unknown prices are NaN in pandas, which JSON does not have.
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
            raise UserError(f"the {which}'s outputs answer an instruction twice; keep one of the answers")
    other = set(texts[0]) ^ set(texts[1])
    if other:
        raise UserError(
            f"model and reference differ in {len(other)} instructions (one: {min(other)!r:.80}); give a "
            "--reference that answers --instructions"
        )
