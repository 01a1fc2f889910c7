"""Does an OpenAI-compatible server give what letters need: log-probabilities, of enough tokens, of the whole prompt?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from calibtune.data.examples import Prompts
from calibtune.errors import UserError
from calibtune.evaluation.doctor import Finding, check_mass
from calibtune.models.served import LetterServer, served
from calibtune.spec import ModelSpec

#: Questions of each task that are asked, and letters' probabilities that are too small to matter where unseen.
ASKED, FAINT = 8, 0.001


def check_server(base_url: str | None, spec: ModelSpec, tasks: Sequence[Any]) -> Iterator[Finding]:
    """Ask a server a few questions of each task.

    Args:
        base_url: Its address; None: OpenAI's.
        spec: The model's name there, and whether chats or texts are sent.
        tasks: Tasks that score letters.
    """
    with TemporaryDirectory() as folder:
        for chat in (spec.apply_chat_template, not spec.apply_chat_template):
            yield _check_form(
                base_url, dataclasses.replace(spec, apply_chat_template=chat), spec, Path(folder, str(chat))
            )
        try:
            with served(base_url, spec, ASKED, Path(folder, str(spec.apply_chat_template))) as server:
                yield from _check_prompts(server)
                for task in tasks:
                    yield from _check_task(task, server, spec)
        except UserError as error:
            yield Finding(False, str(error))


def _check_form(base_url: str | None, asked: ModelSpec, spec: ModelSpec, folder: Path) -> Finding:
    """Look at completions or chats; the ones that are not asked for are no fault where they are missing."""
    form = "chats (--apply-chat-template)" if asked.apply_chat_template else "completions (--no-apply-chat-template)"
    try:
        with served(base_url, asked, 1, folder) as server:
            return Finding(True, f"{form}: the server shows the {server.top} most likely tokens")
    except UserError as error:
        return Finding(asked != spec, f"{form}: {error}")


def _check_prompts(server: LetterServer) -> Iterator[Finding]:
    if not server.raw:
        text = "log-probabilities change with the request's temperature, so that they are not the model's own"
        yield Finding(
            False, f"{text}; ask a server that gives them before sampling (vLLM: --logprobs-mode raw_logprobs)"
        )
    if server.form == "chat completions":
        place = (
            "in its own place"
            if server.takes_system
            else "with the question: the server's template drops or refuses it"
        )
        yield Finding(True, f"the system message stands {place}")
    elif server.added_tokens is None:
        yield Finding(True, "the server does not say how many tokens a prompt has, so that nobody knows of a BOS token")
    elif server.added_tokens:
        yield Finding(
            True, f"the server puts {server.added_tokens} token before a text: the beginning-of-text token (BOS)"
        )
    else:
        text = "the server puts no beginning-of-text token (BOS) before a text; for a model whose tokenizer has one"
        yield Finding(True, f"{text}, such as Llama 3, have the server add it")


def _check_task(task: Any, server: LetterServer, spec: ModelSpec) -> Iterator[Finding]:
    prompts = Prompts(task, server, spec.apply_chat_template)
    examples = [prompts.example(doc) for doc in islice(task.eval_docs, ASKED)]
    found = server.ask({example.context: example.letters for example in examples})
    letters = [letter for some in found.values() for letter in some]
    hidden = [letter.probability for letter in letters if not letter.shown]
    text = (
        f"{task.task_name}: {len(letters) - len(hidden)} of {len(letters)} letters of {len(found)} questions are shown"
    )
    if hidden:
        text += f"; the others have a probability below {max(hidden):.2g} each"
    cure = "; numbers are ranges, so ask a server that shows more tokens"
    good = max(hidden, default=0.0) < FAINT
    yield Finding(good, text if good else text + cure)
    mass = sum(letter.probability for letter in letters if letter.shown) / len(found)
    other = f"{'without' if spec.apply_chat_template else 'with'} --apply-chat-template"
    yield check_mass(task.task_name, mass, len(found), other)
