"""Ask some of each task's questions, with the numbers and the few-shot examples that they have in the whole run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.utils import handle_non_serializable, hash_string

from calibtune.errors import UserError
from calibtune.results.shards import Shard
from harness_ext.task import ONE_CLASS


def choose(
    tasks: Mapping[str, Any], asked: Mapping[str, Sequence[int]] | None, limit: int | None, shard: Shard | None
) -> dict[str, Chosen] | None:
    """Return the numbers of the questions to ask by task, for lm_eval's ``samples``.

    A shard is a part of the questions that the whole run asks, in the order of lm_eval's hashes of their documents.

    Args:
        tasks: By the names that lm_eval has for them in this run.
        asked: What the whole run asks by task name; None: the first ``limit``.
        limit: None: all.
        shard: None: the whole run.

    Returns:
        None: what ``limit`` says.

    Raises:
        UserError: A task has fewer questions than there are shards.
    """
    if asked is None and shard is None:
        return None
    chosen = {}
    for name, task in tasks.items():
        numbers = range(len(task.eval_docs))[:limit] if asked is None else asked[task.task_name]
        if shard is not None:
            docs = list(task.eval_docs)
            whole = [docs[number] for number in numbers]
            places = _part(task.task_name, whole, shard)
            numbers = [numbers[place] for place in places]
            if hasattr(task, "sampler"):
                task.sampler = Skipping(task.sampler, whole, places)
        chosen[name] = Chosen(numbers)
    return chosen


def _part(task: str, docs: Sequence[Any], shard: Shard) -> list[int]:
    if len(docs) < shard.count:
        raise UserError(
            f"--shard {shard} leaves nothing in some shard of {task}, of which {len(docs)} questions are asked; make "
            f"at most {len(docs)} shards"
        )
    hashes = [
        hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)) for doc in docs
    ]
    return sorted(shard.of(sorted(range(len(docs)), key=hashes.__getitem__)))


class Chosen(list[int]):
    """List the numbers of the questions to ask, in order; lm_eval asks for each question whether it is in the list."""

    def __init__(self, numbers: Any) -> None:
        super().__init__(numbers)
        self._known = frozenset(self)

    def __contains__(self, number: object) -> bool:
        return number in self._known

    def __getitem__(self, place: Any) -> Any:
        # lm_eval 0.4.13 counts the questions that it asks. 0.5.0.dev1 knows their numbers, and looks them up once more.
        return super().__getitem__(place) if ONE_CLASS else place


class Skipping:
    """Draw a shard's few-shot examples as the whole run does, where each question's draw depends on those before.

    Args:
        sampler: The task's.
        docs: The whole run's questions.
        places: Of the shard's questions among them, in order.
    """

    def __init__(self, sampler: Any, docs: Sequence[Any], places: Sequence[int]) -> None:
        self._sampler, self._docs, self._places = sampler, docs, places
        self._asked = self._drawn = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def set_rnd(self, *args: Any) -> Skipping:
        """Begin anew, as the harness does before it builds the prompts."""
        self._sampler.set_rnd(*args)
        self._asked = self._drawn = 0
        return self

    def sample(self, n: int, eval_doc: Any = None, **options: Any) -> Any:
        """Draw for the next question, after a draw for each one before it that is another shard's."""
        place = self._places[self._asked]
        for doc in self._docs[self._drawn : place]:
            self._sampler.sample(n, eval_doc=None if eval_doc is None else doc, **options)
        self._asked, self._drawn = self._asked + 1, place + 1
        return self._sampler.sample(n, eval_doc=eval_doc, **options)
