"""Ask a question in several cyclic orders of its options, and average what a model says of each option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from harness_ext.binning import FloatArray
from harness_ext.calibration import letter_log_softmax
from harness_ext.errors import UserError
from harness_ext.ragged import ragged
from harness_ext.sanity import SENTINEL

#: How many orders a question is asked in; "all": as many as it has options.
Orders = int | Literal["all"]
#: Suffix of the name of a task that asks each question in several orders.
SUFFIX = "_orders"


def read_orders(value: Any, name: str) -> Orders:
    """Return a number of orders as a YAML, a flag or Python code gives it.

    Args:
        value: What was given.
        name: What it was given as, for the message.

    Raises:
        UserError: It is neither a whole number from 1 up nor "all".
    """
    if value == "all":
        return "all"
    text = "" if isinstance(value, bool) else str(value)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(f"{name} is {value!r:.80}; give a number from 1 up, or all")
    return int(text)


def count_of(orders: Orders) -> str:
    """Return a number of orders in words.

    Example:
        >>> count_of(1), count_of("all")
        ('one order of the options', 'all orders of the options')
    """
    return "one order of the options" if orders == 1 else f"{orders} orders of the options"


def cyclic(options: int, orders: Orders) -> list[list[int]]:
    """Return cyclic orders of a question's options; the first is their own.

    Fewer orders than options are spread evenly, so that each option sees places far apart.

    Args:
        options: K, the options of the question.
        orders: The number of orders; more than K count as K.

    Returns:
        Permutations of 0 to K - 1: ``permutation[i]`` is the own place of the option shown in place i.

    Example:
        >>> cyclic(3, "all"), cyclic(4, 2)
        ([[0, 1, 2], [1, 2, 0], [2, 0, 1]], [[0, 1, 2, 3], [2, 3, 0, 1]])
    """
    count = options if orders == "all" else min(orders, options)
    first = [order * options // count for order in range(count)]
    return [[(shift + place) % options for place in range(options)] for shift in first]


def reordered(doc: dict[str, Any], gold: Any, permutation: Sequence[int], option: str, cure: str) -> dict[str, Any]:
    """Return a document with its options in another order; in their own order it is returned as it is.

    Args:
        doc: A document with a list ``choices`` and the index of the right one in ``gold`` or ``answer``.
        gold: That index.
        permutation: ``permutation[i]`` is the old place of the option shown in place i.
        option: What needs such documents, for the message.
        cure: What to do where it is another one.

    Raises:
        UserError: The document has no such fields.

    Example:
        >>> reordered({"choices": ["ice", "fire", "wind"], "gold": 0}, 0, [1, 2, 0], "--orders", "leave it out")
        {'choices': ['fire', 'wind', 'ice'], 'gold': 2}
    """
    if list(permutation) == list(range(len(permutation))):
        return doc
    choices = doc.get("choices")
    key = next((key for key in ("gold", "answer") if doc.get(key) == gold), None)
    if key is None or not isinstance(choices, list) or len(choices) != len(permutation):
        raise UserError(
            f"{option} needs documents with a list `choices` and the right one's index in `gold` or `answer`, found "
            f"{sorted(doc)}; {cure}"
        )
    return {**doc, "choices": [choices[old] for old in permutation], key: list(permutation).index(gold)}


def by_option(rows: Sequence[Sequence[Any]], permutations: Sequence[Sequence[int]]) -> list[list[Any]]:
    """Sort what was said of letters in several orders by options.

    Args:
        rows: A row for each order, with one entry a letter.
        permutations: The orders.

    Returns:
        A row for each order, with one entry an option in its own place.
    """
    return [
        [row[list(order).index(option)] for option in range(len(order))]
        for row, order in zip(rows, permutations, strict=True)
    ]


def check_shown(prompts: Sequence[str], task: str) -> None:
    """Check that a question's prompts show its orders.

    Raises:
        UserError: Two of them are the same.
    """
    if len(set(prompts)) < len(prompts):
        raise UserError(
            f"task {task}: the prompt stays the same in another order of the options ({prompts[0][-160:]!r}); ask this "
            "task in one order"
        )


def averages(rows: FloatArray, options: Sequence[int], orders: Orders) -> FloatArray:
    """Average the letters' log-likelihoods of questions that were each asked in several orders.

    Args:
        rows: Shape (M, K), NaN where a question lacks the letter: the orders of each question in a row.
        options: How many options each of the N questions has.
        orders: As it was given to :func:`cyclic`.

    Returns:
        Of the options, shape (N, K); see :func:`averaged`.
    """
    asked, found = iter(rows), []
    for count in options:
        permutations = cyclic(count, orders)
        answers = [next(asked)[:count].tolist() for _ in permutations]
        found.append(averaged(by_option(answers, permutations)).tolist())
    return ragged(found)


def averaged(loglikelihoods: ArrayLike) -> FloatArray:
    """Average what a model says of a question's options in several orders.

    The probabilities over the options are averaged, and so is the mass of the letters among all tokens. A value that
    stands for a letter which the backend did not score is kept, so that :func:`harness_ext.sanity.check_scored` sees
    it.

    Args:
        loglikelihoods: Of n orders, shape (n, K); the columns are options, not letters.

    Returns:
        Log-likelihoods of the options, shape (K,): their softmax is the mean probability, the sum of their
        exponentials the mean mass. Those of a single order are returned as they are.

    Example:
        >>> np.exp(averaged(np.log([[0.8, 0.1], [0.3, 0.2]]))).round(4).tolist()
        [0.5211, 0.1789]
    """
    rows = np.asarray(loglikelihoods, dtype=np.float64)
    if len(rows) == 1:
        return rows[0]
    if (rows < SENTINEL).any():
        return rows.min(axis=0)
    mean = np.logaddexp.reduce(letter_log_softmax(rows), axis=0) - np.log(len(rows))
    mass = np.logaddexp.reduce(rows, axis=None) - np.log(len(rows))
    return np.asarray(mean + mass)
