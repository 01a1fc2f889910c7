"""Ask an OpenAI-compatible judge for alpaca-eval, and store each reply when it arrives.

alpaca-eval makes the prompts, randomizes the order and parses the replies. Its own client is not
used: it stores nothing until 128 pairs are done, one HTTP error stops all of them, and a pair that
ran out of retries is stored as judged without a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict
from pydantic_core import from_json
from typing_extensions import TypedDict

from calibtune.endpoints.client import Client, Malformed, Rejected
from calibtune.endpoints.endpoint import Endpoint
from calibtune.endpoints.journal import Journal
from calibtune.errors import UserError

#: Settings that alpaca-eval 0.6.6 sends if the judge's configuration does not set them.
DEFAULTS = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}
#: Settings of alpaca-eval's client that are not part of a request.
NOT_SENT = ("is_strip", "requires_chatml", "is_chat", "num_procs", "batch_size", "price_per_token")


class Reply(TypedDict):
    """Describe a stored reply, as far as it is read by us."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    text: str


class Judge:
    """Answer prompts as alpaca-eval's ``fn_completions``, paying for each prompt only once."""

    def __init__(self, endpoint: Endpoint, journal: Journal) -> None:
        """Set up the client without sending a request; see :class:`calibtune.endpoints.client.Client`."""
        #: Error texts of rejected requests (400, 422), whose pairs have no verdict.
        self.rejections: list[str] = []
        #: Text of the first reply, for an error about replies that cannot be parsed.
        self.first_reply = ""
        self._client = Client(endpoint, journal, "pairs", "unjudged")

    def __call__(self, prompts: Sequence[str], model_name: str, **settings: Any) -> dict[str, list[Any]]:
        """Answer prompts from the journal or the endpoint.

        Args:
            prompts: ChatML prompts from alpaca-eval.
            model_name: The judge's name at the endpoint.
            settings: The judge's configuration: ``temperature``, ``logprobs``, ...

        Returns:
            The dictionary that alpaca-eval's decoders return: ``completions``, ``completions_all``,
            ``price_per_example`` and ``time_per_example``, in the prompts' order.

        Raises:
            UserError: The endpoint refuses the key, or does not know the model or address.
            WorkFailed: Some pairs got no reply in all attempts, or the journal cannot be written.
        """
        from alpaca_eval.utils import prompt_to_chatml

        for name in ("tokens_to_favor", "tokens_to_avoid"):
            if settings.pop(name, None):
                raise UserError(f"the judge's configuration sets {name}, which is not supported; choose another judge")
        sent = DEFAULTS | {name: value for name, value in settings.items() if name not in NOT_SENT}
        requests = [{"model": model_name, "messages": prompt_to_chatml(p.strip()), **sent} for p in prompts]
        found = self._client.answers("chat completions", requests, _choice, "judging")
        self.rejections += dict.fromkeys(each.why for each in found if isinstance(each, Rejected))
        choices = [{"text": "", "rejected": each.why} if isinstance(each, Rejected) else each for each in found]
        self.first_reply = choices[0]["text"]
        return {
            "completions": [choice["text"] for choice in choices],
            "completions_all": choices,
            "price_per_example": [float("nan")] * len(choices),
            "time_per_example": [choice.get("seconds", float("nan")) for choice in choices],
        }


def _choice(text: str) -> dict[str, Any]:
    """Return the first choice of a chat completion, with ``text`` and ``total_tokens`` added.

    alpaca-eval's parsers read these two keys.
    """
    try:
        reply = from_json(text)
        choice = dict(reply["choices"][0])
        message = choice["message"]
        called = message.get("function_call") or (message.get("tool_calls") or [{}])[0].get("function") or {}
        choice["text"] = str(called.get("arguments") or message.get("content") or " ")
        choice["total_tokens"] = (reply.get("usage") or {}).get("total_tokens", 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Malformed from None
    return choice
