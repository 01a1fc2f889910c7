"""Send requests to an OpenAI-compatible server, and store each reply when it arrives.

The ``openai`` package retries time-outs, lost connections, 429 and 5xx, and obeys Retry-After.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from calibtune.bar import Bar
from calibtune.endpoints.endpoint import Endpoint
from calibtune.endpoints.journal import Journal, key_of
from calibtune.errors import UserError, WorkFailed

#: Number of attempts if a reply of HTTP 200 cannot be read.
MALFORMED_ATTEMPTS = 3
#: The endpoint counts as down after this many failed requests in a row.
FAILURES_IN_A_ROW = 10

Form = Literal["completions", "chat completions"]


@dataclass(frozen=True)
class Rejected:
    """Hold why an endpoint refused a request (400, 422)."""

    why: str


class Malformed(Exception):
    """Report a reply of HTTP 200 that is not what was asked for."""


class Client:
    """Answer requests, paying for each of them only once."""

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        unit: str,
        undone: str,
        again: str = "run the same command again",
    ) -> None:
        """Set up the client without sending a request.

        Args:
            endpoint: Where to ask.
            journal: Store of replies by request. A request does not include the address, so that a
                run can resume with a local server on another port.
            unit: What a request is about, in the plural: "questions".
            undone: What those without a reply are: "unanswered".
            again: What gets the rest of the replies after a failure.

        Raises:
            UserError: The ``openai`` package is missing.
        """
        try:
            import openai
        except ImportError:
            raise UserError("the openai package is missing; pip install 'calibtune[api]'") from None
        self.endpoint = endpoint
        self.journal = journal
        self._words = (unit, undone, again)
        # The package's own client would send the prompts, and to the same host the key, wherever a reply says.
        http_client = openai.DefaultHttpxClient(follow_redirects=False)
        patience: dict[str, Any] = {"timeout": endpoint.timeout, "max_retries": endpoint.retries}
        openai_ = openai.OpenAI(api_key=endpoint.key, base_url=endpoint.base_url, http_client=http_client, **patience)
        self._create: dict[Form, Callable[..., Any]] = {
            "completions": openai_.completions.with_raw_response.create,
            "chat completions": openai_.chat.completions.with_raw_response.create,
        }

    def answers(
        self,
        form: Form,
        requests: Sequence[dict[str, Any]],
        read: Callable[[str], dict[str, Any]],
        doing: str | None = None,
    ) -> list[Any]:
        """Answer requests from the journal or the endpoint.

        Args:
            form: Which of the endpoint's two ways to ask.
            requests: The requests' bodies; equal ones are sent once.
            read: Makes of a reply's text what is stored, or raises :class:`Malformed`.
            doing: Name of the progress bar; None: no bar.

        Returns:
            For each request what ``read`` made of its reply, with ``seconds``, or why it was :class:`Rejected`.

        Raises:
            UserError: The endpoint refuses the key, does not know the model or address, or sends requests on.
            WorkFailed: Some requests got no reply in all attempts, or the journal cannot be written.
        """
        keys = [key_of(request) for request in requests]
        open_ = {key: request for key, request in zip(keys, requests, strict=True) if self.journal.get(key) is None}
        rejected: dict[str, Rejected] = {}
        failures: list[str] = []
        in_a_row = 0
        stop = threading.Event()
        with (
            Bar(total=len(open_), desc=doing, disable=doing is None) as bar,
            concurrent.futures.ThreadPoolExecutor(self.endpoint.workers) as pool,
        ):
            futures = {pool.submit(self._ask, form, key, request, read, stop): key for key, request in open_.items()}
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
                    if isinstance(outcome, Rejected):
                        rejected[futures[future]] = outcome
            finally:
                # Also after an error or interrupt: wait for the requests in flight, which are paid
                # for, and send no new ones.
                stop.set()
                pool.shutdown(cancel_futures=True)
        left = sum(self.journal.get(key) is None and key not in rejected for key in open_)
        if left:
            unit, undone, again = self._words
            stored = f"the others are stored in {self.journal.path}, so for the rest " if len(self.journal) else ""
            raise WorkFailed(
                f"{left} of {len(requests)} {unit} are still {undone} (last error: {failures[-1]}); {stored}{again}"
            )
        return [rejected.get(key) or self.journal.get(key) for key in keys]

    def _ask(
        self,
        form: Form,
        key: str,
        request: Mapping[str, Any],
        read: Callable[[str], dict[str, Any]],
        stop: threading.Event,
    ) -> _Failed | Rejected | None:
        """Send a request with retries, and store what is read of the reply in the journal."""
        import openai

        began = time.monotonic()
        why = ""
        for attempt in range(MALFORMED_ATTEMPTS):
            if stop.wait(0 if attempt == 0 else 0.5 * attempt):
                return _Failed(why or "stopped")
            try:
                text = self._create[form](**request).http_response.text
                value = read(text)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                # Do not quote the reply: it can contain part of the key.
                raise UserError(
                    f"{self.endpoint.place} answers {error.status_code} to model {request['model']!r}; check the key "
                    f"in the environment, the model's name and {self.endpoint.flag}"
                ) from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return Rejected(self.endpoint.redact(str(error))[:200])
            except openai.APIStatusError as error:
                if error.response.is_redirect:
                    to = self.endpoint.redact(error.response.headers.get("location", ""))
                    raise UserError(
                        f"{self.endpoint.place} sends requests on to {to[:100]!r} (HTTP {error.status_code}), which is "
                        f"not followed; give the address that answers as {self.endpoint.flag}"
                    ) from None
                return _Failed(self.endpoint.redact(f"{type(error).__name__}: {error}")[:200])
            except openai.OpenAIError as error:
                return _Failed(self.endpoint.redact(f"{type(error).__name__}: {error}")[:200])
            except Malformed:
                # A server's own words, which may be anything.
                why = f"the reply is not one of {form}: {self.endpoint.redact(text)[:100]!r}"
                continue
            value["seconds"] = round(time.monotonic() - began, 3)
            self.journal.put(key, self.endpoint.redact(value))
            return None
        return _Failed(why)


@dataclass(frozen=True)
class _Failed:
    why: str
