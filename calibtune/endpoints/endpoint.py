"""Say which OpenAI-compatible server is asked, with which key and how patiently."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from calibtune.endpoints.redaction import Redaction
from calibtune.errors import UserError

#: Shorter keys are placeholders for local servers, not secrets.
SECRET = 8


@dataclass(frozen=True)
class Endpoint:
    """Configure an endpoint and its time-outs."""

    #: URL that ends in ``/v1``; None means OpenAI's.
    base_url: str | None
    #: API key from the environment; it must never be in a repr, file or log.
    key: str = field(repr=False)
    #: Longest time to wait for a reply, in seconds.
    timeout: float = 120.0
    #: Number of attempts after a failed request.
    retries: int = 5
    #: Number of parallel requests.
    workers: int = 8
    #: What errors call it, and the option that gives its address.
    name: str = "server"
    flag: str = "--base-url"

    @classmethod
    def from_environment(cls, base_url: str | None, variable: str = "OPENAI_API_KEY", **more: Any) -> Endpoint:
        """Read the key from the environment.

        Args:
            base_url: The user's URL.
            variable: Name of the environment variable with the key; a local server may need none.
            more: Other fields.

        Raises:
            UserError: There is no key for OpenAI, the key is malformed, or the URL is malformed or
                contains a password.
        """
        found = cls(base_url, os.environ.get(variable, "").strip() or "none", **more)
        parts = urlsplit(base_url or "https://")
        if parts.scheme not in ("http", "https") or (base_url and not parts.netloc):
            raise UserError(f"{found.flag} {base_url} is not an http(s) address; give one such as http://host:8000/v1")
        if "@" in parts.netloc or parts.query:
            raise UserError(f"{found.flag} contains a user, password or query; put the key in the environment instead")
        if not (found.key.isascii() and found.key.isprintable()):
            raise UserError(
                f"the environment variable {variable} is not a key (it contains control or non-ASCII characters); set "
                f"it to the {found.name}'s key"
            )
        if found.key == "none" and base_url is None:
            raise UserError(f"the environment has no {variable}; set it, or give {found.flag} of a local {found.name}")
        return found

    @property
    def place(self) -> str:
        """Return how errors name the endpoint."""
        return f"the {self.name} at {self.base_url or 'OpenAI'}"

    def redact(self, value: Any) -> Any:
        """Return a text or a value of JSON without the key, which a server may have echoed.

        Redact before a text is cut: of a key that is cut, no pattern finds the rest.
        """
        return value if len(self.key) < SECRET else self._redaction.value(value)

    @cached_property
    def _redaction(self) -> Redaction:
        return Redaction(self.key)
