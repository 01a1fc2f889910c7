"""Take a secret out of texts, however it is encoded in them."""

from __future__ import annotations

import base64
import html.entities
import re
from functools import cache
from typing import Any

from calibtune.errors import WorkFailed, reason

#: Stands for the secret.
SHOWN = "[key]"


class Redaction:
    """Replace a secret in texts: as it is, escaped, quoted for URLs or HTML, in base64 and in hex.

    Each character may be escaped in its own way and several times over, as in JSON inside of JSON.
    """

    def __init__(self, secret: str) -> None:
        raw = secret.encode()
        forms = [secret, *_base64(raw), *_base64(raw, b"-_"), raw.hex(), raw.hex().upper()]
        self._pattern = re.compile("|".join("".join(map(_character, form)) for form in dict.fromkeys(forms)))

    def text(self, text: str) -> str:
        """Return a text without the secret."""
        return self._pattern.sub(SHOWN, text)

    def value(self, value: Any) -> Any:
        """Return a value of JSON without the secret, in keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(name): self.value(each) for name, each in value.items()}
        return [self.value(each) for each in value] if isinstance(value, list) else value


def reason_without(secret: str, error: BaseException) -> str:
    """Return an error's message in one line, without a secret that a server may have echoed.

    The secret goes before the message is cut: of one that is cut, no pattern finds the rest.

    Example:
        >>> reason_without("hf_secret", OSError("403 for Bearer hf_secret"))
        '403 for Bearer [key]'
    """
    return reason(WorkFailed(Redaction(secret).text(str(error)) or type(error).__name__))


@cache
def _character(sign: str) -> str:
    """Return a pattern of all that stands for a character of ASCII."""
    code = f"{ord(sign):x}"
    names = [name.rstrip(";") for name, text in html.entities.html5.items() if text == sign]
    entities = "|".join([*names, f"#0*{ord(sign)}", f"#[xX]0*(?i:{code})"])
    plain = re.escape(sign) + ("|\\+" if sign == " " else "")
    escaped = f"u\\{{?0*(?i:{code})\\}}?|x(?i:{code:0>2})"
    # A backslash is itself one of those before it.
    return rf"(?:\\{{0,16}}(?:{plain}|{escaped})|%(?:25)*(?i:{code:0>2})|&(?:amp;)*(?:{entities});)"


def _base64(secret: bytes, signs: bytes = b"+/") -> list[str]:
    """Return the part of a secret's base64 that does not depend on what stands around it, for each place in a group."""
    found = []
    for before in range(3):
        text = base64.b64encode(b"\0" * before + secret, signs).decode()
        end = (before + len(secret)) * 8 // 6
        found.append(text[-(-before * 8 // 6) : end])
    return found
