"""Tokenize texts ahead, many in a call: a tokenizer has threads for many texts, and none for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from tqdm import tqdm

from harness_ext.encoding import appended

#: Texts tokenized between two moves of the progress bar.
TEXTS = 1000
#: Last tokens of a prompt among which a special one is looked for.
TAIL = 32


class TextsAhead(TemplateLM):
    """Stand before a backend of lm_eval's with a tokenizer of transformers, and know what was tokenized ahead."""

    #: Tokens of each text that is about to be encoded.
    _ahead: Mapping[str, list[int]] = MappingProxyType({})

    @contextmanager
    def ahead(self, pairs: Iterable[tuple[str, str]], disable_tqdm: bool = True) -> Iterator[None]:
        """Tokenize prompts, and each with what follows it; within the block :meth:`tok_encode` knows them."""
        asked = set(pairs)
        found = self._tokens({context for context, _ in asked}, disable_tqdm)
        rest = set()
        for whole, ids in _followed(self.tokenizer, asked, found):
            if ids is None:
                rest.add(whole)
            else:
                found[whole] = ids
        self._ahead = found | self._tokens(rest, disable_tqdm)
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


def _followed(
    tokenizer: Any, pairs: Set[tuple[str, str]], found: Mapping[str, list[int]]
) -> Iterator[tuple[str, list[int] | None]]:
    """Yield prompts with what follows them, and their tokens where those of the prompts tell all but the last.

    Fast tokenizers cut a text at its special tokens first, and look at each piece by itself. So the letters after all
    prompts that end in ``<|im_start|>assistant`` and a newline are tokenized behind these last words alone.
    """
    places = dict(_last_special(tokenizer, found))
    tails = {context: context[start:] for context, (start, _) in places.items()}
    ends = [*{*tails.values(), *(tails[context] + more for context, more in pairs if context in tails)}]
    ids = dict(zip(ends, tokenizer(ends, add_special_tokens=False)["input_ids"], strict=True)) if ends else {}
    # A special token's text can stand once more behind it, and be plain text there.
    heads = {c: found[c][:place] for c, (_, place) in places.items() if found[c][place:] == ids[tails[c]]}
    for context, more in pairs:
        head = heads.get(context)
        yield context + more, None if head is None else head + ids[tails[context] + more]


def _last_special(tokenizer: Any, found: Mapping[str, list[int]]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield texts near whose end a special token stands, with the character and the token at which it begins."""
    if not getattr(tokenizer, "is_fast", False) or appended(tokenizer):
        return
    added = tokenizer.added_tokens_decoder.items()
    # A token that must be a whole word is none before a letter.
    special = {number: token.content for number, token in added if not token.single_word}
    for text, ids in found.items():
        near = range(len(ids) - 1, max(len(ids) - TAIL, 0) - 1, -1)
        place = next((place for place in near if ids[place] in special), None)
        start = -1 if place is None else text.rfind(special[ids[place]])
        if place is not None and start >= 0:
            yield text, (start, place)
