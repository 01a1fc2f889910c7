"""Splits that no data set ships: the paper's in-domain pool and its merged ARC (paper.md section 5)."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets

from harness_ext.documents import Row, arc_row, medmcqa_row, mirror_cache, mmlu_row, name_of, openbookqa_row
from harness_ext.errors import ScoringError

logger = logging.getLogger(__name__)

SEED = 0
TRAIN, TEST = 3000, 2000
#: The paper's out-domain set.
MERGED = 2000
#: Few-shot examples set apart from the merged ARC before it is drawn.
MERGED_SHOTS = 20

Documents = list[dict[str, Any]]
#: Where each source's labeled rows lie: path, configuration, splits, converter. A question that two sources share
#: belongs to the one named first, so MMLU, which repeats some, comes last.
SOURCES: dict[str, tuple[str, str | None, tuple[str, ...], Callable[[Row, str], dict[str, Any]]]] = {
    "medmcqa": ("openlifescienceai/medmcqa", None, ("train", "validation"), medmcqa_row),
    "openbookqa": ("allenai/openbookqa", "main", ("train", "validation", "test"), openbookqa_row),
    "mmlu": ("cais/mmlu", "all", ("test", "validation"), mmlu_row),
}


def normalized(question: str) -> str:
    """A question's text without differences of case and blanks, for de-duplication.

    Example:
        >>> normalized("  Which is   HOT?")
        'which is hot?'
    """
    return " ".join(question.lower().split())


def rank(doc: Mapping[str, Any], seed: int = SEED) -> str:
    """A document's place in a draw: a hash of seed and contents, so that the order of the rows does not matter."""
    contents = json.dumps([seed, normalized(doc["question"]), doc["choices"], doc["gold"]], ensure_ascii=False)
    return hashlib.sha256(contents.encode()).hexdigest()


def usable(rows: datasets.Dataset, to_document: Callable[[Row, str], dict[str, Any]]) -> tuple[Documents, int]:
    """The rows of a split that can be asked under letters, and how many cannot."""
    documents, refused = [], 0
    for position, row in enumerate(rows.to_list()):
        try:
            documents.append(to_document(row, name_of(rows, position, row)))
        except ScoringError:
            # A draw of 5,000 from all that is there needs none of them; the count is reported.
            refused += 1
    return documents, refused


def distinct(documents: Sequence[dict[str, Any]], taken: set[str], seed: int = SEED) -> Documents:
    """Documents in the order of the draw, one for each question text that is not taken yet; ``taken`` grows."""
    kept = []
    for doc in sorted(documents, key=lambda doc: rank(doc, seed)):
        text = normalized(doc["question"])
        if text not in taken:
            taken.add(text)
            kept.append(doc)
    return kept


def equal_shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How many to take from each source: the same from all, as far as their rows last.

    Args:
        sizes: Rows of each source.
        total: Rows wanted.

    Returns:
        Rows to take from each; they sum to ``total``, or to all there are.

    Example:
        >>> equal_shares({"a": 10, "b": 100, "c": 100}, 91)
        {'a': 10, 'b': 41, 'c': 40}
    """
    shares: dict[str, int] = {}
    left = min(total, sum(sizes.values()))
    names = sorted(sizes, key=lambda name: sizes[name])
    for position, name in enumerate(names):
        remaining = len(names) - position
        shares[name] = min(sizes[name], -(-left // remaining))
        left -= shares[name]
    return {name: shares[name] for name in sizes}


def draw_pool(pools: Mapping[str, Sequence[dict[str, Any]]], train: int, test: int) -> dict[str, Documents]:
    """Train and test documents, each source with the same share of both.

    Args:
        pools: Distinct documents of each source, in the order of the draw.
        train: Documents to train on, at most.
        test: Documents to test on, at most; both shrink in proportion where there are fewer rows.

    Returns:
        ``train`` and ``test``, each mixed over all sources, so that the first of them are a fair sample, with the
        document's ``source``.
    """
    shares = equal_shares({name: len(pool) for name, pool in pools.items()}, train + test)
    splits: dict[str, Documents] = {"train": [], "test": []}
    cut = seen = 0
    for name, pool in pools.items():
        before = cut
        seen += shares[name]
        # The running total is rounded, not each source, so that 3,000 stays 3,000.
        cut = round(seen * train / (train + test))
        drawn = [{**doc, "source": name} for doc in pool[: shares[name]]]
        splits["train"] += drawn[: cut - before]
        splits["test"] += drawn[cut - before :]
    # By another draw: in the first one's order a source with fewer rows would come after one with more.
    return {name: sorted(split, key=lambda doc: rank(doc, SEED + 1)) for name, split in splits.items()}


@functools.lru_cache(maxsize=1)
def _indomain(caches: tuple[str | None, ...]) -> datasets.DatasetDict:
    pools: dict[str, Documents] = {}
    taken: set[str] = set()
    for cache, (name, (path, configuration, splits, to_document)) in zip(caches, SOURCES.items(), strict=True):
        documents: Documents = []
        for split in splits:
            found, refused = usable(
                datasets.load_dataset(path, configuration, split=split, cache_dir=cache), to_document
            )
            documents += [{key: doc[key] for key in ("question", "choices", "gold")} for doc in found]
            if refused:
                logger.warning(
                    "mc_calib_indomain: %d rows of %s %s cannot be asked and are left out", refused, path, split
                )
        pools[name] = distinct(documents, taken)
    drawn = draw_pool(pools, TRAIN, TEST)
    return datasets.DatasetDict({name: datasets.Dataset.from_list(split) for name, split in drawn.items()})


def indomain(**_: Any) -> datasets.DatasetDict:
    """``custom_dataset`` of mc_calib_indomain: 3,000 train and 2,000 test questions of MMLU, MedMCQA and OpenBookQA."""
    return _indomain(tuple(mirror_cache(path) for path, *_ in SOURCES.values()))


def arc_merged(**_: Any) -> datasets.DatasetDict:
    """``custom_dataset`` of mc_calib_arc_merged: at most 2,000 of all ARC-Challenge questions, 20 more for few-shot."""
    documents: Documents = []
    path = "allenai/ai2_arc"
    for rows in datasets.load_dataset(path, "ARC-Challenge", cache_dir=mirror_cache(path)).values():
        documents += [arc_row(row, name_of(rows, position, row)) for position, row in enumerate(rows.to_list())]
    drawn = distinct(documents, set())
    shots, merged = drawn[:MERGED_SHOTS], drawn[MERGED_SHOTS : MERGED_SHOTS + MERGED]
    return datasets.DatasetDict(
        {"shots": datasets.Dataset.from_list(shots), "test": datasets.Dataset.from_list(merged)}
    )
