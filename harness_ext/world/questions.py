"""Draw questions about the world, and build the splits of its two tasks."""

import functools
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from harness_ext.world.facts import OPTIONS, SEED, Fact, facts

#: Number of training questions, and of test questions in and out of domain, as in arXiv 2505.01997.
TRAIN, TEST = 3000, 2000

Documents = list[dict[str, Any]]


def ask(fact: Fact, phrasing: int, order: Sequence[int], gold: int) -> dict[str, Any]:
    """Return one question as a document of the harness.

    Args:
        fact: The fact that is asked about.
        phrasing: Index of the relation's phrasing.
        order: ``order[i]`` is the index of the value shown as option i.
        gold: Index of the value that is the right answer.

    Returns:
        ``question``, ``choices``, ``gold`` (index of the right option), ``p_star`` (p* of each
        option, in the order shown) and ``fact``.
    """
    return {
        "question": fact.relation.phrasings[phrasing].format(fact.entity),
        "choices": [fact.values[i] for i in order],
        "gold": list(order).index(gold),
        "p_star": [fact.p_star[i] for i in order],
        "fact": f"{fact.relation.name} of {fact.entity}",
    }


def draw(pool: Sequence[Fact], count: int, rng: np.random.RandomState) -> Documents:
    """Draw distinct questions: no two have the same text and the same order of options.

    Args:
        pool: The facts to ask about, drawn in proportion to their weights.
        count: Number of questions.
        rng: Draws fact, phrasing, order and, from p*, the right answer.

    Returns:
        The documents; see :func:`ask`.

    Raises:
        ValueError: The pool allows fewer than ``count`` distinct questions.
    """
    possible = len(pool) * len(pool[0].phrasing_weights) * int(np.prod(range(1, OPTIONS + 1)))
    if count > possible:
        raise ValueError(f"{count} questions wanted, but {len(pool)} facts allow only {possible}; ask for fewer")
    weights = np.asarray([fact.weight for fact in pool])
    which = _cumulative(weights / weights.sum())
    phrasings = [_cumulative(fact.phrasing_weights) for fact in pool]
    answers = [_cumulative(fact.p_star) for fact in pool]
    asked: set[tuple[int, int, tuple[int, ...]]] = set()
    documents: Documents = []
    while len(documents) < count:
        number = _choice(which, rng)
        phrasing = _choice(phrasings[number], rng)
        order = tuple(rng.permutation(OPTIONS).tolist())
        gold = _choice(answers[number], rng)
        if (number, phrasing, order) not in asked:
            asked.add((number, phrasing, order))
            documents.append(ask(pool[number], phrasing, order, gold))
    return documents


def _cumulative(probabilities: Any) -> np.ndarray:
    cumulative = np.asarray(probabilities, dtype=np.float64).cumsum()
    return cumulative / cumulative[-1]


def _choice(cumulative: np.ndarray, rng: np.random.RandomState) -> int:
    """``rng.choice`` with these probabilities, the same draw; its checks of them take ten times as long."""
    return int(cumulative.searchsorted(rng.random_sample(), side="right"))


@functools.lru_cache(maxsize=1)
def splits() -> dict[str, Documents]:
    """Return ``train`` and ``test`` about the same facts, ``out_domain`` about other relations."""
    rng = np.random.RandomState(SEED + 1)
    inside = draw([fact for fact in facts() if fact.relation.in_domain], TRAIN + TEST, rng)
    outside = draw([fact for fact in facts() if not fact.relation.in_domain], TEST, rng)
    return {"train": inside[:TRAIN], "test": inside[TRAIN:], "out_domain": outside}


def in_domain(**_: Any) -> datasets.DatasetDict:
    """Return 3,000 training questions and 2,000 test questions about the same facts.

    This is the ``custom_dataset`` of mc_calib_world.
    """
    return datasets.DatasetDict({name: datasets.Dataset.from_list(splits()[name]) for name in ("train", "test")})


def out_domain(**_: Any) -> datasets.DatasetDict:
    """Return 2,000 test questions about relations that no training question asks about.

    This is the ``custom_dataset`` of mc_calib_world_ood.
    """
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(splits()["out_domain"])})
