"""Find the questions that two runs share."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from calibtune.results.samples import Samples
from harness_ext.binning import IntArray

#: Identifies a question across runs: hash of its document, right answer, and the number of earlier
#: rows with the same two.
Key = tuple[str, int, int]
#: Said of two runs with the same log-likelihoods.
SAME_ANSWERS = "have the same log-likelihoods to the last bit, which two models do not; was one --use_cache file used?"


def question_keys(rows: Samples) -> tuple[Key, ...]:
    """Return the key of each question of a samples file; repeated questions get different keys."""
    before: Counter[tuple[str, int]] = Counter()
    keys = []
    for number, (digest, right) in enumerate(zip(rows.doc_hashes, rows.labels.tolist(), strict=True)):
        # Old versions of lm_eval did not hash documents; such questions must match no others.
        item = (f"{rows.path} {number}" if digest == "None" else digest, right)
        keys.append((*item, before[item]))
        before[item] += 1
    return tuple(keys)


def digest(rows: Samples) -> str:
    """Return a hash of all questions and their log-probabilities, to the last bit, whatever their order."""
    found = sorted(zip(question_keys(rows), map(bytes, rows.log_probs), strict=True))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def matching_rows(a: Sequence[Key], b: Sequence[Key]) -> tuple[IntArray, IntArray]:
    """Return the rows in ``a`` and in ``b`` of the questions that both have, in the order of ``a``.

    Example:
        >>> rows = matching_rows([("x", 0, 0), ("y", 1, 0)], [("y", 1, 0), ("z", 0, 0)])
        >>> [side.tolist() for side in rows]
        [[1], [0]]
    """
    place = {key: row for row, key in enumerate(b)}
    pairs = np.array([(row, place[key]) for row, key in enumerate(a) if key in place], dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
