"""Encode a backend's requests as ``calibtune eval`` does: prompts whole, each text once.

lm_eval loses a newline at a prompt's end where the tokenizer has one token for it and what stands before it
(:mod:`harness_ext.encoding`), and tokenizes each prompt for each letter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from lm_eval.models.huggingface import HFLM

from calibtune.data.ahead import TextsAhead
from calibtune.data.templates import limited
from harness_ext.encoding import split_whole

#: Letters are short; longer continuations are left to lm_eval's own way of scoring.
LONGEST_CONTINUATION = 8

Tokens = tuple[int, ...]


class WholePrompts(TextsAhead):
    """Stand before a backend of lm_eval's with a tokenizer of transformers, and encode for it."""

    #: Scores continuations of at most ``LONGEST_CONTINUATION`` tokens.
    _score_letters: Callable[..., list[tuple[float, bool]]]

    @cached_property
    def max_length(self) -> int:
        """Return how many tokens the model takes, which the stock backend finds out again for each request."""
        return int(super().max_length)

    def apply_chat_template(self, *args: Any, **options: Any) -> str:
        """Render a conversation as the hf backend does, within limits; vLLM's drops ``enable_thinking``."""
        return limited(partial(HFLM.apply_chat_template, self))(*args, **options)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score requests; each text is tokenized once, where lm_eval tokenizes each prompt for each letter."""
        pairs = (request.args for request in requests if request.args[0])
        with self.ahead(pairs, disable_tqdm or self.rank != 0):
            return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Score letters by ``_score_letters``, and longer continuations of the same run as lm_eval does."""
        causal = self.backend == "causal"
        letters = [causal and len(continuation) <= LONGEST_CONTINUATION for _, _, continuation in requests]
        answers: dict[int, tuple[float, bool]] = {}
        for short, score in ((False, super()._loglikelihood_tokens), (True, self._score_letters)):
            numbers = [i for i, letter in enumerate(letters) if letter == short]
            if numbers:
                found = score([requests[i] for i in numbers], disable_tqdm=disable_tqdm, **options)
                answers |= zip(numbers, found, strict=True)
        return [answers[i] for i in range(len(requests))]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split the whole text's tokens where the context ends."""
        if self.backend != "causal":
            return super()._encode_pair(context, continuation)
        return split_whole(self.tok_encode(context), self.tok_encode(context + continuation))
