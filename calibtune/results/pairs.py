"""Find the questions that two runs share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from calibtune.results.samples import Rows
from harness_ext.binning import IntArray

#: What makes a question the same in another run: its document's hash, right answer, and how often both came before.
Key = tuple[str, int, int]


def question_keys(rows: Rows) -> tuple[Key, ...]:
    """Return the key of each question of a samples file; the same question may be in it twice."""
    before: Counter[tuple[str, int]] = Counter()
    keys = []
    for number, (digest, right) in enumerate(zip(rows.doc_hashes, rows.gold.tolist(), strict=True)):
        # Samples of an lm_eval too old to hash documents match nothing.
        item = (f"{rows.path} {number}" if digest == "None" else digest, right)
        keys.append((*item, before[item]))
        before[item] += 1
    return tuple(keys)


def matching_rows(a: Sequence[Key], b: Sequence[Key]) -> tuple[IntArray, IntArray]:
    """Return the rows of the questions that both have, in the order of ``a``.

    Example:
        >>> rows = matching_rows([("x", 0, 0), ("y", 1, 0)], [("y", 1, 0), ("z", 0, 0)])
        >>> [side.tolist() for side in rows]
        [[1], [0]]
    """
    place = {key: row for row, key in enumerate(b)}
    pairs = np.array([(row, place[key]) for row, key in enumerate(a) if key in place], dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
