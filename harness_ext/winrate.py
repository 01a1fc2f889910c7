"""Compute the UltraFeedback win rate (arXiv 2505.01997, Eq 21).

It is the share of pairs whose chosen response has a higher log-likelihood than the rejected one.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from harness_ext.documents import name_of
from harness_ext.encoding import Watch
from harness_ext.errors import UserError
from harness_ext.intervals import wilson
from harness_ext.letters import loglikelihood_of
from harness_ext.task import WatchedTask

logger = logging.getLogger(__name__)


def pairs(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return instruction, chosen and rejected response of each pair; this is ``process_docs``.

    A pair with an empty text cannot be scored and is left out; a warning names its row.

    Raises:
        UserError: An instruction or a response is not a text.
    """
    columns = {"instruction": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}
    documents, empty = [], []
    for position, row in enumerate(dataset.to_list()):
        doc = {name: row[column] for name, column in columns.items()}
        if not all(isinstance(text, str) for text in doc.values()):
            raise UserError(f"{name_of(dataset, position, row)} holds {doc!r}, not three texts; fix or remove the row")
        if all(text.strip() for text in doc.values()):
            documents.append(doc)
        else:
            empty.append(position)
    if empty:
        logger.warning("%d of %d pairs have an empty text and are left out, rows %s", len(empty), len(dataset), empty)
    return datasets.Dataset.from_list(documents)


def responses(doc: Mapping[str, str]) -> list[str]:
    """Return the two continuations to score: chosen, rejected."""
    return [doc["chosen"], doc["rejected"]]


class PairTask(WatchedTask):
    """Add each response's token count to its log-likelihood, which the harness gives alone."""

    def check_encoding(self, watch: Watch) -> None:
        """Check that each response fits into the context; else the harness fails an assertion.

        Raises:
            UserError: Responses are too long; the message gives their number and the longest.
        """
        too_long = {pair: seen for pair, seen in watch.encoded.items() if len(seen.tokens) > seen.limit}
        if too_long:
            (context, _), worst = max(too_long.items(), key=lambda item: len(item[1].tokens))
            raise UserError(
                f"{self.task_name}: {len(too_long)} responses are longer than the model's {worst.limit} tokens, the "
                f"longest has {len(worst.tokens)} (instruction ends {context[-80:]!r}); raise max_length"
            )

    def apply_filters(self) -> Any:
        """Add token count and whether the input was cut to each result, also for ``--log_samples``.

        Raises:
            UserError: All log-likelihoods are the same, or a token count is unknown.
        """
        scores = [loglikelihood_of(instance.resps, instance.doc["instruction"], 0) for instance in self._instances]
        if len(set(scores)) == 1:
            raise UserError(
                f"{self.task_name}: the backend gave all {len(scores)} responses the same log-likelihood "
                f"({scores[0]!r}), so it does not score them; use another backend"
            )
        for instance, loglikelihood in zip(self._instances, scores, strict=True):
            encoded = self.watch.encoded.get(instance.args[:2])
            if encoded is None or not encoded.tokens:
                raise UserError(
                    f"{self.task_name}: the token count of a response to {instance.doc['instruction'][:80]!r} is "
                    "unknown; use a backend with a tokenizer, and no --use_cache"
                )
            instance.resps = [(loglikelihood, instance.resps[0][1], len(encoded.tokens), encoded.cut)]
        return super().apply_filters()


def process_results(doc: Mapping[str, str], results: Sequence[tuple[float, bool, int, bool]]) -> dict[str, float]:
    """Compute the metrics of one pair.

    Args:
        doc: The pair; unused.
        results: Log-likelihood, whether it is the greedy continuation, token count and whether the
            input was cut, for the chosen and the rejected response.

    Returns:
        1.0 or 0.0 for each metric. A tie is not a win; ``ties`` counts equal log-likelihoods.
    """
    (chosen, _, chosen_tokens, chosen_cut), (rejected, _, rejected_tokens, rejected_cut) = results
    win = float(chosen > rejected)
    average = float(chosen / chosen_tokens > rejected / rejected_tokens)
    return {
        **{f"win_rate{end}": win for end in ("", "_low", "_high")},
        **{f"win_rate_avg{end}": average for end in ("", "_low", "_high")},
        "ties": float(chosen == rejected),
        "cut": float(chosen_cut or rejected_cut),
    }


def low(items: Sequence[float]) -> float:
    """Return the lower end of the share's 95 % interval (:func:`harness_ext.intervals.wilson`)."""
    return wilson(math.fsum(items), len(items))[0]


def high(items: Sequence[float]) -> float:
    """Return the upper end of the share's 95 % interval (:func:`harness_ext.intervals.wilson`)."""
    return wilson(math.fsum(items), len(items))[1]
