"""Evaluate a model behind an OpenAI-compatible server: lm_eval's requests of a question's letters as one of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from calibtune.data.letter_tasks import scores_letters
from calibtune.errors import UserError
from calibtune.models.served import LetterServer
from harness_ext.encoding import sent_as_text


def check_letter_tasks(tasks: Sequence[Any]) -> None:
    """Check that each task scores letters, which an answer's first token tells.

    Raises:
        UserError: A task does not; the message names it.
    """
    for task in tasks:
        if not scores_letters(task):
            raise UserError(
                f"--tasks {task.task_name} does not score the letters A, B, ..., and a server tells of an answer's "
                "first token alone; give --as-letters"
            )


class ApiLM(LM):
    """Score the letters of questions with a server, whose tokenizer and weights are not at hand."""

    def __init__(self, server: LetterServer) -> None:
        super().__init__()
        self.server = server

    @property
    def tokenizer_name(self) -> str:
        """Return what the harness's caches know the prompts' rendering by."""
        return f"{self.server.model} {self.server.form}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages as text; see :meth:`calibtune.models.served.LetterServer.apply_chat_template`."""
        return self.server.apply_chat_template(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool | None]]:  # type: ignore[override]
        """Return the log-likelihood of each letter and whether it is the most likely token.

        The second is None where the server does not show the letter, and the first then its bound; see
        :func:`harness_ext.sanity.is_unseen`.
        """
        questions: dict[str, dict[str, None]] = {}
        for request in requests:
            prompt, letter = request.args
            questions.setdefault(prompt, {})[letter] = None
        found = self.server.ask({prompt: list(letters) for prompt, letters in questions.items()})
        sent_as_text(request.args for request in requests)
        letters = {(p, name): each for p, some in found.items() for name, each in zip(questions[p], some, strict=True)}
        scored = [letters[request.args] for request in requests]
        return [(letter.loglikelihood, letter.first if letter.shown else None) for letter in scored]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Refuse: whole texts have no letters."""
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Refuse: nothing is generated."""
        raise NotImplementedError
