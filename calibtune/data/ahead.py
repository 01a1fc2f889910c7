"""Tokenize texts ahead, all in one call: a tokenizer has threads for many texts, and none for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from tqdm import tqdm

#: Texts tokenized between two moves of the progress bar.
TEXTS = 1000


class TextsAhead(TemplateLM):
    """Stand before a backend of lm_eval's with a tokenizer of transformers, and know what was tokenized ahead."""

    #: Tokens of each text that is about to be encoded.
    _ahead: Mapping[str, list[int]] = MappingProxyType({})

    @contextmanager
    def ahead(self, texts: Set[str], disable_tqdm: bool = True) -> Iterator[None]:
        """Tokenize texts in one call; within the block :meth:`tok_encode` knows them."""
        self._ahead = self._tokens(texts, disable_tqdm)
        try:
            yield
        finally:
            self._ahead = MappingProxyType({})

    def tok_encode(self, string: Any, *args: Any, **options: Any) -> Any:
        """Encode one text, or with vLLM several, as the stock backend does."""
        known = None if args or options or not isinstance(string, str) else self._ahead.get(string)
        return super().tok_encode(string, *args, **options) if known is None else known

    def _tokens(self, texts: Set[str], disable_tqdm: bool) -> dict[str, list[int]]:
        """Return the tokens of each text as the stock backend encodes it."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        found: dict[str, list[int]] = {}
        with tqdm(total=len(texts), disable=disable_tqdm, desc="Tokenizing", delay=2) as bar:
            for begins in (False, True):
                group = [text for text in texts if has_bos_prefix(text, prefix) is begins]
                special = False if begins else self.add_bos_token
                options = {} if special is None else {"add_special_tokens": special}
                for start in range(0, len(group), TEXTS):
                    some = group[start : start + TEXTS]
                    found |= zip(some, self.tokenizer(some, **options)["input_ids"], strict=True)
                    bar.update(len(some))
        return found
