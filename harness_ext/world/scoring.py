"""Compute scores against the true probabilities p*, which only a generated world has."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness_ext.calibration import top
from harness_ext.errors import UserError
from harness_ext.letters import Letter
from harness_ext.metrics import process_results as letter_results
from harness_ext.world.theory import true_calibration_error


def process_results(doc: Mapping[str, Any], results: Sequence[Letter]) -> dict[str, Any]:
    """Compute the metrics of one question of the world.

    Args:
        doc: The question, with ``p_star``.
        results: One letter for each option, from the filter ``letter_softmax``.

    Returns:
        The metrics of every letter task; ``tce``, the question's L1 distance, in [0, 2];
        ``acc_true``, p* of the predicted option, which is accuracy without the noise of the drawn
        answer; and ``acc_star``, the largest p*, whose mean is acc*, the accuracy of the best
        calibrated model.

    Raises:
        UserError: As :func:`harness_ext.metrics.process_results`, or ``p_star`` is missing or
            does not have one number for each option.
    """
    items = letter_results(doc, results)
    p_star = doc.get("p_star")
    if not isinstance(p_star, Sequence) or len(p_star) != len(results):
        raise UserError(
            f"question {doc['question'][:80]!r} has {len(results)} options and p* {p_star!r}; give p* of each option"
        )
    probs = np.asarray([[letter.probability for letter in results]])
    return {
        **items,
        "tce": true_calibration_error(probs, [p_star]),
        "acc_true": float(p_star[int(top(probs)[1][0])]),
        "acc_star": float(max(p_star)),
    }
