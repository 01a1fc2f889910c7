"""Say in one word each what a reader must know of a model's numbers before comparing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calibtune.reporting.questions import Questions
from calibtune.reporting.runs import Run
from calibtune.results.measures import calibrated_p
from calibtune.results.table import LEVEL
from harness_ext.sanity import count_ties

AT_CHANCE = "at chance"
#: Less probability than this on the letters says that the model answers in another form.
LITTLE_MASS = 0.5


def badges(questions: Questions, numbers: Mapping[str, Any], run: Run, task: str, prompts: str = "") -> dict[str, str]:
    """Return the badges of a model on a task, each with a sentence that says why.

    Args:
        questions: Its questions.
        numbers: Its metrics.
        run: Its run.
        task: Name of the task.
        prompts: How its prompts differ from the base's; empty if they do not.
    """
    rows, found = len(questions.gold), {}
    chance = float(np.mean(1 / (~np.isnan(questions.loglikelihoods)).sum(axis=1)))
    if numbers["acc_low"] <= chance:
        found[AT_CHANCE] = f"its accuracy cannot be told from that of guessing, {chance:.3f}, or is below"
    if calibrated_p(numbers) >= LEVEL:
        found["cannot be told from calibrated"] = "a calibrated model shows as much ECE on so many questions"
    if questions.unseen:
        found["letters missing"] = f"in {questions.unseen:,} of {rows:,} questions the server did not show all letters"
    elif numbers["letter_mass"] < LITTLE_MASS:
        found["letters missing"] = f"the letters hold {numbers['letter_mass']:.0%} of the probability"
    if prompts:
        found["prompts differ"] = prompts
    if cut := [run.cut[name] for name in questions.pooled or (task,) if name in run.cut]:
        asked, whole = (sum(side) for side in zip(*cut, strict=True))
        found["cut"] = f"{asked:,} of {whole:,} questions were asked"
    if ties := count_ties(questions.loglikelihoods):
        found["ties"] = f"in {ties:,} of {rows:,} questions several letters are equally likely, and the first counts"
    return found
