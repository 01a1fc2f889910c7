"""Encode a backend's requests as ``calibtune eval`` does: prompts whole, each text once.

lm_eval loses a newline at a prompt's end where the tokenizer has one token for it and what stands before it
(:mod:`harness_ext.encoding`), and tokenizes each prompt for each letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import partial
from types import MappingProxyType
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from tqdm import tqdm

from calibtune.data.templates import limited
from harness_ext.encoding import split_whole

#: Letters are short; longer continuations are left to lm_eval's own way of scoring.
LONGEST_CONTINUATION = 8
#: Texts tokenized between two moves of the progress bar.
TEXTS = 1000

Tokens = tuple[int, ...]


class WholePrompts(TemplateLM):
    """Stand before a backend of lm_eval's with a tokenizer of transformers, and encode for it."""

    #: Tokens of each text that is about to be encoded.
    _ahead: Mapping[str, list[int]] = MappingProxyType({})

    def apply_chat_template(self, *args: Any, **options: Any) -> str:
        """Render a conversation as the hf backend does, within limits; vLLM's drops ``enable_thinking``."""
        return limited(partial(HFLM.apply_chat_template, self))(*args, **options)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score requests; each text is tokenized once, where lm_eval tokenizes each prompt for each letter."""
        pairs = [request.args for request in requests if request.args[0]]
        texts = {text for pair in pairs for text in (pair[0], "".join(pair))}
        self._ahead = self._tokens(texts, disable_tqdm)
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self._ahead = MappingProxyType({})

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split the whole text's tokens where the context ends."""
        if self.backend != "causal":
            return super()._encode_pair(context, continuation)
        return split_whole(self.tok_encode(context), self.tok_encode(context + continuation))

    def tok_encode(self, string: Any, *args: Any, **options: Any) -> Any:
        """Encode one text, or with vLLM several, as the stock backend does."""
        known = None if args or options or not isinstance(string, str) else self._ahead.get(string)
        return super().tok_encode(string, *args, **options) if known is None else known

    def _tokens(self, texts: Set[str], disable_tqdm: bool) -> dict[str, list[int]]:
        """Return the tokens of each text as the stock backend encodes it."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        found: dict[str, list[int]] = {}
        with tqdm(total=len(texts), disable=disable_tqdm or self.rank != 0, desc="Tokenizing", delay=2) as bar:
            for begins in (False, True):
                group = [text for text in texts if has_bos_prefix(text, prefix) is begins]
                special = False if begins else self.add_bos_token
                options = {} if special is None else {"add_special_tokens": special}
                for start in range(0, len(group), TEXTS):
                    some = group[start : start + TEXTS]
                    found |= zip(some, self.tokenizer(some, **options)["input_ids"], strict=True)
                    bar.update(len(some))
        return found
