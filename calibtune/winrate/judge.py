"""Ask an OpenAI-compatible judge for alpaca-eval, and store each reply when it arrives.

alpaca-eval makes the prompts, randomizes the order and parses the replies. Its own client is not
used: it stores nothing until 128 pairs are done, one HTTP error stops all of them, and a pair that
ran out of retries is stored as judged without a verdict. The ``openai`` package is used instead; it
retries time-outs, lost connections, 429 and 5xx, and obeys Retry-After.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from pydantic import ConfigDict
from pydantic_core import from_json
from tqdm import tqdm
from typing_extensions import TypedDict

from calibtune.errors import UserError, WorkFailed
from calibtune.winrate.journal import Journal, key_of
from calibtune.winrate.redaction import Redaction

#: Number of attempts if a reply of HTTP 200 is not a chat completion.
MALFORMED_ATTEMPTS = 3
#: The endpoint counts as down after this many failed pairs in a row.
FAILURES_IN_A_ROW = 10
#: Shorter keys are placeholders for local servers, not secrets.
SECRET = 8
#: Settings that alpaca-eval 0.6.6 sends if the judge's configuration does not set them.
DEFAULTS = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}
#: Settings of alpaca-eval's client that are not part of a request.
NOT_SENT = ("is_strip", "requires_chatml", "is_chat", "num_procs", "batch_size", "price_per_token")


class Reply(TypedDict):
    """Describe a stored reply, as far as it is read by us."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    text: str


@dataclass(frozen=True)
class Endpoint:
    """Configure the judge's endpoint and its time-outs."""

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

    @classmethod
    def from_environment(cls, base_url: str | None, variable: str, **patience: Any) -> Endpoint:
        """Read the key from the environment.

        Args:
            base_url: The user's URL.
            variable: Name of the environment variable with the key; a local server may need none.
            patience: ``timeout``, ``retries`` and ``workers``.

        Raises:
            UserError: There is no key for OpenAI, the key is malformed, or the URL is malformed or
                contains a password.
        """
        parts = urlsplit(base_url or "https://")
        if parts.scheme not in ("http", "https") or (base_url and not parts.netloc):
            raise UserError(
                f"--judge-base-url {base_url} is not an http(s) address; give one such as http://host:8000/v1"
            )
        if "@" in parts.netloc or parts.query:
            raise UserError(
                "--judge-base-url contains a user, password or query; put the key in the environment instead"
            )
        key = os.environ.get(variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(
                f"the environment variable {variable} is not a key (it contains control or non-ASCII characters); set "
                "it to the judge's key"
            )
        if not key and base_url is None:
            raise UserError(f"the environment has no {variable}; set it, or give --judge-base-url of a local judge")
        return cls(base_url, key or "none", **patience)

    def redact(self, value: Any) -> Any:
        """Return a text or a value of JSON without the key, which a server may have echoed.

        Redact before a text is cut: of a key that is cut, no pattern finds the rest.
        """
        return value if len(self.key) < SECRET else self._redaction.value(value)

    @cached_property
    def _redaction(self) -> Redaction:
        return Redaction(self.key)


class Judge:
    """Answer prompts as alpaca-eval's ``fn_completions``, paying for each prompt only once."""

    def __init__(self, endpoint: Endpoint, journal: Journal) -> None:
        """Set up the client without sending a request.

        Args:
            endpoint: The judge's endpoint.
            journal: Store of replies by request. A request does not include the address, so that a
                run can resume with a local server on another port.
        """
        import openai

        self.endpoint = endpoint
        self.journal = journal
        #: Error texts of rejected requests (400, 422), whose pairs have no verdict.
        self.rejections: list[str] = []
        #: Text of the first reply, for an error about replies that cannot be parsed.
        self.first_reply = ""
        self._client = openai.OpenAI(
            api_key=endpoint.key,
            base_url=endpoint.base_url,
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
            # The client's own would send the prompts, and to the same host the key, wherever a reply says.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )

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
        choices = self._answer(requests)
        self.first_reply = choices[0]["text"]
        return {
            "completions": [choice["text"] for choice in choices],
            "completions_all": choices,
            "price_per_example": [float("nan")] * len(choices),
            "time_per_example": [choice.get("seconds", float("nan")) for choice in choices],
        }

    def _answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        keys = [key_of(request) for request in requests]
        open_ = {key: request for key, request in zip(keys, requests, strict=True) if self.journal.get(key) is None}
        rejected: dict[str, dict[str, Any]] = {}
        failures: list[str] = []
        in_a_row = 0
        stop = threading.Event()
        with (
            tqdm(total=len(open_), desc="judging", disable=None) as bar,
            concurrent.futures.ThreadPoolExecutor(self.endpoint.workers) as pool,
        ):
            futures = {pool.submit(self._ask, key, request, stop): key for key, request in open_.items()}
            try:
                for future in concurrent.futures.as_completed(futures):
                    outcome = future.result()
                    bar.update()
                    if isinstance(outcome, _Failed):
                        failures.append(outcome.why)
                        in_a_row += 1
                        if in_a_row >= FAILURES_IN_A_ROW:
                            break
                        continue
                    in_a_row = 0
                    if isinstance(outcome, _Rejected):
                        rejected[futures[future]] = {"text": "", "rejected": outcome.why}
            finally:
                # Also after an error or interrupt: wait for the requests in flight, which are paid
                # for, and send no new ones.
                stop.set()
                pool.shutdown(cancel_futures=True)
        left = sum(self.journal.get(key) is None and key not in rejected for key in open_)
        if left:
            raise WorkFailed(
                f"{left} of {len(requests)} pairs are still unjudged (last error: {failures[-1]}); the others are "
                f"stored in {self.journal.path}, so run the same command again to judge the rest"
            )
        self.rejections += [choice["rejected"] for choice in rejected.values()]
        return [rejected.get(key) or self.journal.get(key) for key in keys]

    def _ask(self, key: str, request: Mapping[str, Any], stop: threading.Event) -> _Failed | _Rejected | None:
        """Send a request with retries, and store the reply in the journal."""
        import openai

        began = time.monotonic()
        why = ""
        for attempt in range(MALFORMED_ATTEMPTS):
            if stop.wait(0 if attempt == 0 else 0.5 * attempt):
                return _Failed(why or "stopped")
            try:
                reply = self._client.chat.completions.with_raw_response.create(**request)
                choice = _choice(reply.http_response.text)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                # Do not quote the reply: it can contain part of the key.
                raise UserError(
                    f"the judge at {self.endpoint.base_url or 'OpenAI'} answers {error.status_code} to model "
                    f"{request['model']!r}; check the key in the environment, the model's name and --judge-base-url"
                ) from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return _Rejected(self.endpoint.redact(str(error))[:200])
            except openai.APIStatusError as error:
                if error.response.is_redirect:
                    place = self.endpoint.redact(error.response.headers.get("location", ""))
                    raise UserError(
                        f"the judge at {self.endpoint.base_url or 'OpenAI'} sends requests on to "
                        f"{place[:100]!r} (HTTP {error.status_code}), which is not followed; give the address that "
                        "answers as --judge-base-url"
                    ) from None
                return _Failed(self.endpoint.redact(f"{type(error).__name__}: {error}")[:200])
            except openai.OpenAIError as error:
                return _Failed(self.endpoint.redact(f"{type(error).__name__}: {error}")[:200])
            except _Malformed as error:
                why = f"the reply is not a chat completion: {self.endpoint.redact(error.reply)[:100]!r}"
                continue
            choice["seconds"] = round(time.monotonic() - began, 3)
            self.journal.put(key, self.endpoint.redact(choice))
            return None
        return _Failed(why)


@dataclass(frozen=True)
class _Failed:
    why: str


@dataclass(frozen=True)
class _Rejected:
    why: str


class _Malformed(Exception):
    """Report a reply of HTTP 200 that is not a chat completion."""

    def __init__(self, reply: str) -> None:
        self.reply = reply


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
        raise _Malformed(text) from None
    return choice
