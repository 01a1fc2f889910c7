"""Build the in-domain pool and the merged ARC set of arXiv 2505.01997, which no data set ships."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets

from harness_ext.copies import normalized
from harness_ext.documents import Row, arc_row, medmcqa_row, mirror_cache, mmlu_row, name_of, openbookqa_row
from harness_ext.errors import UserError

logger = logging.getLogger(__name__)

SEED = 0
ENCODER = json.JSONEncoder(ensure_ascii=False)
TRAIN, TEST = 3000, 2000
#: Size of the paper's out-of-domain set.
MERGED = 2000
#: Few-shot examples, which are not part of the merged ARC set.
MERGED_SHOTS = 20

Documents = list[dict[str, Any]]
#: Path, configuration, labeled splits and converter of each source. A question that occurs in two
#: sources belongs to the first of them; MMLU repeats questions of others and therefore comes last.
SOURCES: dict[str, tuple[str, str | None, tuple[str, ...], Callable[[Row, str], dict[str, Any]]]] = {
    "medmcqa": ("openlifescienceai/medmcqa", None, ("train", "validation"), medmcqa_row),
    "openbookqa": ("allenai/openbookqa", "main", ("train", "validation", "test"), openbookqa_row),
    "mmlu": ("cais/mmlu", "all", ("test", "validation"), mmlu_row),
}


def rank(doc: Mapping[str, Any], seed: int = SEED) -> str:
    """Return a hash of seed and contents, which orders a draw independently of the row order."""
    question = " ".join(doc["question"].lower().split())
    contents = ENCODER.encode([seed, question, doc["choices"], doc["gold"]])
    return hashlib.sha256(contents.encode()).hexdigest()


def usable(rows: datasets.Dataset, to_document: Callable[[Row, str], dict[str, Any]]) -> tuple[Documents, int]:
    """Return the documents of a split that can be scored, and the number of rows that cannot."""
    documents, refused = [], 0
    for position, row in enumerate(rows.to_list()):
        try:
            documents.append(to_document(row, name_of(rows, position, row)))
        except UserError:
            # The draw of 5,000 has enough rows without these; the caller reports their number.
            refused += 1
    return documents, refused


def distinct(documents: Sequence[dict[str, Any]], taken: set[str], seed: int = SEED) -> Documents:
    """Return documents with distinct questions that are not in ``taken``, in the order of the draw.

    Their normalized questions (:func:`harness_ext.copies.normalized`) are added to ``taken``.
    """
    kept = []
    for doc in sorted(documents, key=lambda doc: rank(doc, seed)):
        text = normalized(doc["question"])
        if text not in taken:
            taken.add(text)
            kept.append(doc)
    return kept


def equal_shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Return how many rows to take from each source, in shares as equal as their sizes allow.

    Args:
        sizes: Number of rows of each source.
        total: Number of rows to take.

    Returns:
        Number of rows to take from each source; they sum to ``total`` or to all available rows.

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
    """Draw train and test documents, to which each source contributes the same proportions.

    Args:
        pools: Distinct documents of each source, in the order of the draw.
        train: Largest number of training documents.
        test: Largest number of test documents; both shrink in proportion if there are fewer rows.

    Returns:
        ``train`` and ``test``. Documents have their ``source`` and are shuffled over all sources,
        so that the first n are a fair sample.
    """
    shares = equal_shares({name: len(pool) for name, pool in pools.items()}, train + test)
    splits: dict[str, Documents] = {"train": [], "test": []}
    cut = seen = 0
    for name, pool in pools.items():
        before = cut
        seen += shares[name]
        # Round the running total, not each source, so that the shares sum to exactly 3,000.
        cut = round(seen * train / (train + test))
        drawn = [{**doc, "source": name} for doc in pool[: shares[name]]]
        splits["train"] += drawn[: cut - before]
        splits["test"] += drawn[cut - before :]
    # Sort by a second draw: a source's documents are the lowest of its own first draw, so sorting
    # all by the first draw would put large sources first.
    return {name: sorted(split, key=lambda doc: rank(doc, SEED + 1)) for name, split in splits.items()}


@functools.lru_cache(maxsize=1)
def _indomain(caches: tuple[str | None, ...]) -> datasets.DatasetDict:
    pools: dict[str, Documents] = {}
    taken: set[str] = set()
    for cache, (name, (path, configuration, splits, to_document)) in zip(caches, SOURCES.items(), strict=True):
        documents: Documents = []
        loaded = datasets.load_dataset(path, configuration, split=list(splits), cache_dir=cache)
        for split, rows in zip(splits, loaded, strict=True):
            found, refused = usable(rows, to_document)
            documents += [{key: doc[key] for key in ("question", "choices", "gold")} for doc in found]
            if refused:
                logger.warning(
                    "mc_calib_indomain: %d rows of %s %s cannot be scored and are left out", refused, path, split
                )
        pools[name] = distinct(documents, taken)
    drawn = draw_pool(pools, TRAIN, TEST)
    return datasets.DatasetDict({name: datasets.Dataset.from_list(split) for name, split in drawn.items()})


def indomain(**_: Any) -> datasets.DatasetDict:
    """Draw 3,000 train and 2,000 test questions from MMLU, MedMCQA and OpenBookQA.

    This is the ``custom_dataset`` of mc_calib_indomain.
    """
    return _indomain(tuple(mirror_cache(path) for path, *_ in SOURCES.values()))


def arc_merged(**_: Any) -> datasets.DatasetDict:
    """Draw up to 2,000 questions from all splits of ARC-Challenge, and 20 others for few-shot.

    This is the ``custom_dataset`` of mc_calib_arc_merged.
    """
    documents: Documents = []
    path = "allenai/ai2_arc"
    for rows in datasets.load_dataset(path, "ARC-Challenge", cache_dir=mirror_cache(path)).values():
        documents += [arc_row(row, name_of(rows, position, row)) for position, row in enumerate(rows.to_list())]
    drawn = distinct(documents, set())
    shots, merged = drawn[:MERGED_SHOTS], drawn[MERGED_SHOTS : MERGED_SHOTS + MERGED]
    return datasets.DatasetDict(
        {"shots": datasets.Dataset.from_list(shots), "test": datasets.Dataset.from_list(merged)}
    )
