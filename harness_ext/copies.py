"""Tell copies of a question from other questions, however they are written."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Sketch = NDArray[np.uint8]

#: Characters that show nothing although they count as letters or marks: variation selectors, fillers, joiners.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u3164\ufe00-\ufe0f\U000e0100-\U000e01ef]")
#: A mark between two numbers, or a sign before one: 3.5 is not 35, and -5 not 5.
OPERATOR = re.compile(r"((?<=\d)\s*[-./*:]\s*(?=\d)|(?<!\w)-(?=\d))")
#: In every text with an operator.
OPERATES = re.compile(r"[-./*:]\s*\d")
#: Characters of a shingle, and bytes of a sketch.
SHINGLE, BYTES = 5, 128


class _Kept(dict[int, str | None]):
    """Map a code point to itself, or to None if its category is one of ``dropped``; for ``str.translate``."""

    def __init__(self, dropped: str) -> None:
        self.dropped = dropped

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))
        dash = "-" if category == "Pd" else chr(code)
        self[code] = None if category[0] in self.dropped else dash
        return self[code]


_SHOWN, _WORDS = _Kept("C"), _Kept("CPZ")


def normalized(text: str) -> str:
    r"""Return what is left of a text without case, blanks, punctuation, invisible characters and Unicode's variants.

    Marks between numbers and signs before them are kept, and so are symbols such as ``+`` and ``<``. A text of nothing
    but punctuation is returned without its outer blanks.

    Example:
        >>> normalized("  Which is \u201cHOT\u201d\u200b, at ４°C? "), normalized("2 - 3"), normalized("2-3.")
        ('whichishotat4°c', '2-3', '2-3')
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # A newline is a control character, and a blank here.
    plain = INVISIBLE.sub("", " ".join(plain.split()).translate(_SHOWN))
    # Few texts have one, and to look behind every character takes longer than all else.
    parts = OPERATOR.split(plain) if OPERATES.search(plain) else [plain]
    kept = "".join(part.strip() if number % 2 else part.translate(_WORDS) for number, part in enumerate(parts))
    return kept or text.strip()


@functools.cache
def _multipliers() -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Return multipliers of a shingle's characters, and multipliers and shifts of each byte's hash function.

    They are taken from a hash, which is the same everywhere: manifests keep sketches.
    """
    digest = hashlib.shake_128(b"calibtune").digest(8 * (SHINGLE + 2 * BYTES))
    characters, factors, shifts = np.split(np.frombuffer(digest, "<u8"), [SHINGLE, SHINGLE + BYTES])
    return characters | np.uint64(1), factors | np.uint64(1), shifts


def sketch(texts: Iterable[str]) -> Sketch:
    """Return a MinHash of a question's normalized texts: the lowest byte of the least hash under each function.

    Two texts agree in about the share of bytes that their sets of shingles have in common (their Jaccard similarity);
    see :func:`similarity`. This is b-bit minwise hashing, Li and Koenig 2010, with b = 8.

    Args:
        texts: The question and its options in any order, normalized.

    Returns:
        Shape (BYTES,).
    """
    codes = np.frombuffer("\n".join(texts).ljust(SHINGLE).encode("utf-32-le", "surrogatepass"), np.uint32)
    characters, factors, shifts = _multipliers()
    windows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.uint64), SHINGLE)
    shingles = np.unique(windows @ characters)
    shingles ^= shingles >> np.uint64(31)
    hashes = shingles[:, None] * factors
    hashes += shifts
    # The upper half of a product modulo 2**64 is a hash of all its bits.
    return (hashes.min(axis=0) >> np.uint64(32)).astype(np.uint8)


def similarity(one: Sketch, many: Sketch) -> NDArray[np.float64]:
    """Estimate the Jaccard similarity of one question to each of many.

    Args:
        one: Shape (BYTES,).
        many: Shape (N, BYTES); compared fastest in Fortran's order.

    Returns:
        Shape (N,); the standard error is below .045.
    """
    agreeing = (many == one).sum(axis=1, dtype=np.uint8) / BYTES
    # Bytes of other hashes agree once in 256 times.
    return np.clip((agreeing - 1 / 256) / (1 - 1 / 256), 0, 1)
