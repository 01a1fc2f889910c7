"""UltraFeedback win rate: how often the chosen response is likelier than the rejected one (paper Eq 21)."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from harness_ext.documents import name_of
from harness_ext.encoding import Watch
from harness_ext.errors import ScoringError
from harness_ext.intervals import wilson
from harness_ext.letters import loglikelihood_of
from harness_ext.task import WatchedTask

logger = logging.getLogger(__name__)


def pairs(dataset: datasets.Dataset) -> datasets.Dataset:
    """``process_docs``: instruction, chosen and rejected response of each pair.

    A pair with an empty text (two of the mirror's 1,000) has nothing to score and is left out; a warning names its row.

    Raises:
        ScoringError: One of the three is no text.
    """
    columns = {"instruction": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}
    documents, empty = [], []
    for position, row in enumerate(dataset.to_list()):
        doc = {name: row[column] for name, column in columns.items()}
        if not all(isinstance(text, str) for text in doc.values()):
            raise ScoringError(f"{name_of(dataset, position, row)} holds {doc!r}, not three texts; mend or remove it")
        if all(text.strip() for text in doc.values()):
            documents.append(doc)
        else:
            empty.append(position)
    if empty:
        logger.warning("%d of %d pairs have an empty text and are left out, rows %s", len(empty), len(dataset), empty)
    return datasets.Dataset.from_list(documents)


def responses(doc: Mapping[str, str]) -> list[str]:
    """The two continuations scored: chosen, rejected."""
    return [doc["chosen"], doc["rejected"]]


class PairTask(WatchedTask):
    """Adds to each response's log-likelihood its token count, which the harness does not hand to tasks."""

    def check_encoding(self, watch: Watch) -> None:
        """Refuse responses that alone are longer than the model's context.

        Raises:
            ScoringError: With their count and the longest; the harness itself would stop with a bare assertion.
        """
        too_long = {pair: seen for pair, seen in watch.encoded.items() if len(seen.tokens) > seen.limit}
        if too_long:
            (context, _), worst = max(too_long.items(), key=lambda item: len(item[1].tokens))
            raise ScoringError(
                f"{self.task_name}: {len(too_long)} responses are longer than the model's {worst.limit} tokens, the "
                f"longest has {len(worst.tokens)} (instruction ends {context[-80:]!r}); raise max_length"
            )

    def apply_filters(self) -> Any:
        """Put token count and whether the pair was cut beside each response, where ``--log_samples`` keeps them too."""
        scores = [loglikelihood_of(instance.resps, instance.doc["instruction"]) for instance in self._instances]
        if len(set(scores)) == 1:
            raise ScoringError(
                f"{self.task_name}: the backend gave all {len(scores)} responses the same log-likelihood "
                f"({scores[0]!r}); it does not score them"
            )
        for instance, loglikelihood in zip(self._instances, scores, strict=True):
            encoded = self.watch.encoded.get(instance.args[:2])
            if encoded is None or not encoded.tokens:
                raise ScoringError(
                    f"{self.task_name}: no token count is known for a response to "
                    f"{instance.doc['instruction'][:80]!r}; use a backend with a tokenizer, and no --use_cache"
                )
            instance.resps = [(loglikelihood, instance.resps[0][1], len(encoded.tokens), encoded.cut)]
        return super().apply_filters()


def process_results(doc: Mapping[str, str], results: Sequence[tuple[float, bool, int, bool]]) -> dict[str, float]:
    """The items of one pair.

    Args:
        doc: The pair; unused, what counts is in the results.
        results: Log-likelihood, whether greedy, token count and whether cut, of the chosen and the rejected response.

    Returns:
        1.0 or 0.0 by metric. A tie is no win; ``ties`` are equal sums.
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
    """Lower end of the share's 95 % interval (:func:`harness_ext.intervals.wilson`), as an aggregation."""
    return wilson(math.fsum(items), len(items))[0]


def high(items: Sequence[float]) -> float:
    """Upper end of the share's 95 % interval (:func:`harness_ext.intervals.wilson`), as an aggregation."""
    return wilson(math.fsum(items), len(items))[1]
