"""Score letters with a model behind an OpenAI-compatible server: one request a question, its first token's top list.

A letter that the list does not show has a probability between 0 and a bound: that of the list's last token, and what
all shown tokens leave of 1.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError
from pydantic import ConfigDict
from pydantic_core import from_json
from typing_extensions import TypedDict

from calibtune.endpoints.client import Client, Form, Malformed, Rejected
from calibtune.endpoints.endpoint import Endpoint
from calibtune.endpoints.journal import Journal
from calibtune.errors import UserError
from calibtune.spec import ModelSpec
from calibtune.text import visible
from harness_ext.sanity import SENTINEL

logger = logging.getLogger(__name__)

#: File of a server's replies in an output folder.
REPLIES = "replies.jsonl"
#: Numbers of tokens that are asked for, from the most: servers refuse more than they give (vLLM 20, OpenAI 20 in chats
#: and 5 in completions).
TOPS = (100, 20, 5)
#: Servers round what they show, so that a little more than the rest may be left for a letter.
ROUNDING = 1e-4
#: Log-probabilities that differ by less are those of one distribution, computed twice.
ALIKE = 0.1
#: Asked of a server to see what it gives.
PROBE = "A"


class Stored(TypedDict):
    """Describe a reply in the journal."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    top: list[tuple[str, float]]
    token: str | None
    prompt_tokens: int | None


class Served(NamedTuple):
    """Hold a letter as a server shows it."""

    #: Its log-probability, or the bound of it where the server does not show the letter.
    loglikelihood: float
    shown: bool
    #: Whether it is the most likely token.
    first: bool

    @property
    def probability(self) -> float:
        """Return the probability, or its bound."""
        return math.exp(self.loglikelihood)


class Conversation(str):
    """Hold a chat's messages as JSON text; a text is in it that is in a message."""

    __slots__ = ()

    def __contains__(self, text: object) -> bool:
        return any(str(text) in message["content"] for message in json.loads(self))


@dataclass(frozen=True)
class Reply:
    """Hold what a server shows of an answer's first token, as the journal has it."""

    #: The list's tokens and their log-probabilities.
    top: Sequence[tuple[str, float]]
    #: The token that was answered with.
    token: str | None
    prompt_tokens: int | None

    @classmethod
    def of(cls, stored: Stored) -> Reply:
        """Return what the journal has."""
        return cls(stored["top"], stored["token"], stored["prompt_tokens"])

    @cached_property
    def shown(self) -> dict[str, float]:
        """Return the log-probability of each shown text; tokens that read alike count together."""
        found: dict[str, float] = {}
        for text, value in self.top:
            found[text] = float(np.logaddexp(found[text], value)) if text in found else value
        return found

    @cached_property
    def bound(self) -> float:
        """Return the largest log-probability that a token beyond the list can have.

        A server adds the token that it answered with to the list, however unlikely it is: the list's end is found
        without it.
        """
        last = min([value for text, value in self.top if text != self.token] or self.shown.values(), default=0.0)
        rest = max(1.0 - sum(map(math.exp, self.shown.values())), 0.0) + ROUNDING
        return min(last, math.log(rest), 0.0)

    def letters(self, names: Sequence[str], stripped: bool) -> list[Served]:
        """Return each letter.

        Args:
            names: The texts that stand for the letters, such as ``" A"``.
            stripped: Whether blanks around a shown token are no matter.
        """
        shown = self.shown
        if stripped:
            names = [name.strip() for name in names]
            shown = Reply([(text.strip(), value) for text, value in self.top], None, None).shown
        most = max(shown.values(), default=-math.inf)
        return [
            Served(shown[name], True, shown[name] == most) if name in shown else Served(self.bound, False, False)
            for name in names
        ]


class LetterServer:
    """Ask one model of a server for letters.

    Args:
        client: The server and the journal of its replies.
        spec: The model's name there, and how it is prompted: with a chat template, messages are sent, which the server
            renders with its own template and the further arguments (vLLM, SGLang and llama.cpp take them), else text.
    """

    def __init__(self, client: Client, spec: ModelSpec) -> None:
        self.client, self.model = client, spec.name
        self.form: Form = "chat completions" if spec.apply_chat_template else "completions"
        given = spec.chat_template_args
        self._more = {"extra_body": {"chat_template_kwargs": given}} if given else {}

    @cached_property
    def top(self) -> int:
        """Return how many of the most likely tokens the server shows, asked of it once.

        Raises:
            UserError: It refuses to show any, or shows none.
        """
        for top in TOPS:
            (found,) = self._replies([self._probe(PROBE)], top)
            if isinstance(found, Rejected):
                continue
            if not found.top:
                raise UserError(
                    f"{self.client.endpoint.place} gives no log-probabilities with {self.form} of {self.model}; "
                    f"{self._other}, or a server that does"
                )
            return top
        raise UserError(
            f"{self.client.endpoint.place} refuses {self.form} of {self.model} with log-probabilities ({found.why}); "
            f"{self._other}, or a server that gives them"
        )

    @property
    def _other(self) -> str:
        return f"try {'--no-' if self.form == 'chat completions' else '--'}apply-chat-template"

    @cached_property
    def takes_system(self) -> bool:
        """Return whether the model's chat template has a place for a system message, asked of the server once.

        Some templates reject one and some drop it, so that the prompt has one length whatever it says.
        """
        asked = [[{"role": "system", "content": text}, *self._probe(PROBE)] for text in ("A", "A and B, or A, B and C")]
        first, second = self._replies(asked, self.top)
        if isinstance(first, Rejected) or isinstance(second, Rejected):
            return False
        return first.prompt_tokens is None or first.prompt_tokens != second.prompt_tokens

    @cached_property
    def raw(self) -> bool:
        """Return whether the server gives the model's own log-probabilities, whatever the request's temperature."""
        cold, warm = (self._replies([self._probe(PROBE)], self.top, temperature=t)[0] for t in (0, 1))
        return not isinstance(warm, Rejected) and abs(max(cold.shown.values()) - max(warm.shown.values())) < ALIKE

    @cached_property
    def added_tokens(self) -> int | None:
        """Return how many tokens the server puts before a text (1: the beginning-of-text token), None: it does not say.

        One letter is one token, and so is another one after it.
        """
        one, two = self._replies([self._probe("A"), self._probe("A A")], self.top)
        if isinstance(one, Rejected) or isinstance(two, Rejected) or not one.prompt_tokens or not two.prompt_tokens:
            return None
        return max(2 * one.prompt_tokens - two.prompt_tokens, 0)

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages as the text that :meth:`ask` takes.

        Raises:
            jinja2.TemplateError: The server's template takes no system message; the task puts it into the user's.
            UserError: The answer is begun by the task, which a server cannot continue.
        """
        if not add_generation_prompt:
            raise UserError(
                f"the task begins the answer itself, with {messages[-1]['content']!r:.80}, which a chat server does "
                "not continue; evaluate it with --no-apply-chat-template, or ask it with --as-letters"
            )
        if messages[0]["role"] == "system" and not self.takes_system:
            raise TemplateError("the server's template takes no system message")
        return Conversation(json.dumps(messages, ensure_ascii=False))

    def ask(self, questions: Mapping[str, Sequence[str]]) -> dict[str, list[Served]]:
        """Return the letters of each question.

        Args:
            questions: By prompt, the texts that stand for its letters.

        Raises:
            UserError: The server refuses a question, or shows no letter of any.
            WorkFailed: See :meth:`calibtune.endpoints.client.Client.answers`.
        """
        names = [list(letters) for letters in questions.values()]
        prompts: list[Any] = list(questions)
        if self.form == "chat completions":
            prompts = [json.loads(prompt) for prompt in prompts]
        else:
            # The blanks at a prompt's end belong to the token of the letter after them.
            blanks = [len(prompt) - len(prompt.rstrip(" ")) for prompt in prompts]
            names = [[" " * n + name for name in some] for n, some in zip(blanks, names, strict=True)]
            prompts = [prompt.rstrip(" ") for prompt in prompts]
        where, model = self.client.endpoint.place, visible(self.model)
        logger.info("%s: asking %d questions of %s, %d top tokens each", where, len(prompts), model, self.top)
        replies = self._replies(prompts, self.top, "Asking")
        for prompt, reply in zip(questions, replies, strict=True):
            if isinstance(reply, Rejected):
                raise UserError(
                    f"{self.client.endpoint.place} refuses the question that ends {prompt[-80:]!r} ({reply.why}); the "
                    "replies so far are kept"
                )
        # Some servers show tokens without the blank that they begin with.
        for stripped in (False, True):
            found = [reply.letters(some, stripped) for reply, some in zip(replies, names, strict=True)]
            if any(letter.shown for letter in itertools.chain(*found)):
                return dict(zip(questions, found, strict=True))
        shown = [text for text, _ in sorted(replies[0].top, key=lambda pair: -pair[1])[:5]]
        raise UserError(
            f"{self.client.endpoint.place} shows no letter among the {len(replies[0].top)} most likely tokens of any "
            f"question, but {shown}; {self._other}, or let the model answer without thinking (--chat-template-args)"
        )

    def _probe(self, text: str) -> Any:
        return [{"role": "user", "content": text}] if self.form == "chat completions" else text

    def _replies(self, prompts: Sequence[Any], top: int, doing: str | None = None, temperature: int = 0) -> list[Any]:
        """Return the :class:`Reply` to each prompt, or why it was refused."""
        sent = {"model": self.model, "max_tokens": 1, "temperature": temperature, **self._more}
        if self.form == "chat completions":
            requests = [{"messages": prompt, "logprobs": True, "top_logprobs": top, **sent} for prompt in prompts]
        else:
            requests = [{"prompt": prompt, "logprobs": top, **sent} for prompt in prompts]
        found = self.client.answers(self.form, requests, read_reply, doing)
        return [each if isinstance(each, Rejected) else Reply.of(each) for each in found]


def read_reply(text: str) -> dict[str, Any]:
    """Read what a server shows of an answer's first token; an empty list where it gives no log-probabilities.

    Both of OpenAI's forms are read, whichever was asked for: llama.cpp's server answers completions in that of chats.

    Raises:
        Malformed: It is no completion.
    """
    try:
        reply = from_json(text)
        shown = reply["choices"][0].get("logprobs") or {}
        if "content" in shown:
            first = (shown["content"] or [{}])[0]
            listed = [(each["token"], each["logprob"]) for each in first.get("top_logprobs") or ()]
            own = (first.get("token"), first.get("logprob"))
        else:
            listed = list(((shown.get("top_logprobs") or [None])[0] or {}).items())
            own = tuple((shown.get(name) or [None])[0] for name in ("tokens", "token_logprobs"))
        if own[0] is not None and own[0] not in dict(listed):
            listed.append(own)
        # Very unlikely tokens have -9999 or nothing in place of a number; no logarithm of a probability is above 0.
        shown = [(str(token), float(value)) for token, value in listed if value is not None]
        count = (reply.get("usage") or {}).get("prompt_tokens")
        return {
            "top": [(token, value) for token, value in shown if SENTINEL < value < ALIKE],
            "token": None if own[0] is None else str(own[0]),
            "prompt_tokens": count if isinstance(count, int) else None,
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Malformed from None


@contextlib.contextmanager
def served(
    base_url: str | None, spec: ModelSpec, workers: int, folder: Path, again: str = "run the same command again"
) -> Iterator[LetterServer]:
    """Open a server, and the journal of its replies in an output folder, which the command holds.

    Args:
        base_url: The server's address, which ends in ``/v1``; None: OpenAI's.
        spec: The model's name there, and how it is prompted.
        workers: Number of parallel requests.
        folder: The output folder.
        again: What gets the rest of the replies after a failure.

    Raises:
        UserError: See :meth:`calibtune.endpoints.endpoint.Endpoint.from_environment` and :attr:`LetterServer.top`.
    """
    endpoint = Endpoint.from_environment(base_url, workers=workers)
    with Journal(folder / REPLIES, Stored) as journal:
        if len(journal):
            logger.info("%s holds %d replies, which are not asked for again", journal.path, len(journal))
        server = LetterServer(Client(endpoint, journal, "questions", "unanswered", again), spec)
        try:
            server.top  # noqa: B018 - the first request: is it there, and does it show anything?
            yield server
        finally:
            if not len(journal):
                journal.path.unlink(missing_ok=True)
