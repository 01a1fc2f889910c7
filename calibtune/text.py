"""Show texts of others as what they are: no control characters, no markup."""

from __future__ import annotations

import re
from typing import Any

#: What Markdown reads as something else than text: markup, links of bare addresses, mathematics.
MARKUP = re.compile(r"[\\`*_\[\]<>|~$#]|&(?=#?\w+;)|:(?=//)|(?<=mailto):|(?<=xmpp):|(?<=www)\.", re.IGNORECASE)

#: Characters of a message.
LONGEST = 4000


def visible(text: str, kept: str = "") -> str:
    r"""Return a text with control, invisible and directional characters as Python writes them in literals.

    Args:
        text: Any text, such as a model's name from a file.
        kept: Such characters to keep, such as newlines.

    Example:
        >>> print(visible("a\x1b[31m\nb\u202e"))
        a\x1b[31m\nb\u202e
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in kept else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    # Other blanks are no harm, and some scripts need them.
    return " " if sign.isspace() and ord(sign) > 0x9F and sign not in "\u2028\u2029" else repr(sign)[1:-1]


def one_sentence(text: str) -> str:
    r"""Return a message as it is printed: lines of a list stay, those that a name has in it do not.

    Of one with a name of thousands of characters the beginning and the end are left, where the advice is.

    Example:
        >>> print(one_sentence("mend:\n  one\n  a\nb"))
        mend:
          one
          a\nb
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return re.sub(r"\n(?!  )", r"\\n", visible(text, "\n"))


def markdown(text: str) -> str:
    r"""Return a text that Markdown shows as it is.

    Example:
        >>> print(markdown("[a_b](https://c.d)"))
        \[a\_b\](https\://c.d)
    """
    return MARKUP.sub(r"\\\g<0>", text)


class Visible:
    """Write to a stream what :func:`visible` returns, with its newlines and tabs; all else is the stream's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        self._stream.write(visible(text, "\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
