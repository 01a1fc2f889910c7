"""How the model's tokenizer splits a task's requests into context and continuation.

The harness strips blanks from a context's end, encodes what remains, and cuts the whole text's tokens at that length.
Where a tokenizer has one token for ``>`` and a newline, the model is then fed ``>`` alone and never sees the newline.
Here the cut is where the tokens of the context and of the whole text part, and the whole text's tokens are fed.

The harness hands a task neither its tokenizer nor token counts, cuts a long prompt from the left with a log line, and
scores letters that share a token alike. Its tokenizing backends go through ``TemplateLM._encode_pair``, so that is
where a task of ours watches and splits its own requests. Requests of other tasks are left alone.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.model import LM

from harness_ext.errors import UserError

Request = tuple[str, str]
Tokens = tuple[int, ...]


class Encoded(NamedTuple):
    """Hold the token ids of a request's continuation, the context's token count and whether the model must cut it."""

    tokens: Tokens
    context: int
    #: Tokens that the model takes, ``max_length`` of the backend.
    limit: int
    cut: bool


def split_whole(context: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]]:
    r"""Cut the tokens of a whole text where its context ends.

    Args:
        context: Tokens of the context alone, its last blanks included.
        whole: Tokens of the context with its continuation.

    Returns:
        The whole text's tokens, in two parts. Where one token spans the border it belongs to the continuation.

    Example:
        >>> split_whole([5, 6, 7], [5, 6, 7, 8])  # "<|user|>", "\n", "A"
        ([5, 6, 7], [8])
        >>> split_whole([5, 6, 1], [5, 6, 9])  # ":", " " becomes ":", " A"
        ([5, 6], [9])
    """
    cut = len(context)
    if whole[:cut] != context:
        pairs = enumerate(zip(context, whole, strict=False))
        cut = next((i for i, (first, second) in pairs if first != second), min(len(context), len(whole)))
    return list(whole[:cut]), list(whole[cut:])


def letter_tokens(encoded: Mapping[str, tuple[int, Tokens]], tokenizer: Any = None) -> tuple[Tokens, Tokens]:
    """Find the one token that tells each letter of a question.

    Args:
        encoded: By letter, the context's token count and the letter's tokens.
        tokenizer: Asked for the cause of a refusal.

    Returns:
        Tokens that all letters begin with, and the one token of each letter after them.

    Raises:
        UserError: A letter is several tokens, two share one, or one of them merges with the prompt's end.
    """
    tokens = [ids for _, ids in encoded.values()]
    shared = next((i for i, ids in enumerate(zip(*tokens, strict=False)) if len(set(ids)) > 1), 0)
    rests = [ids[shared:] for ids in tokens]
    alike = len({context for context, _ in encoded.values()}) == 1
    if alike and all(len(ids) == 1 for ids in rests) and len(set(rests)) == len(rests):
        return tokens[0][:shared], tuple(ids[0] for ids in rests)
    shown = ", ".join(f"{letter!r}={list(ids)}" for letter, ids in zip(encoded, rests, strict=True))
    added = appended(tokenizer)
    if added:
        cause = f"its tokenizer appends {' '.join(added)} to every text, so no letter is a prompt's next token"
    elif not alike:
        cause = "its tokenizer merges some of the letters, and not others, with the prompt's last characters"
    elif len({len(ids) for ids in rests}) > 1:
        cause = "its tokenizer splits some of the letters, and not others, into several tokens"
    elif len(set(rests)) < len(rests):
        cause = "its tokenizer has one token for several letters"
    else:
        cause = "its tokenizer splits the options into several tokens"
    raise UserError(f"the letters have the tokens {shown}, not one of their own each: {cause}")


def appended(tokenizer: Any) -> list[str]:
    """Return the special tokens that a tokenizer puts behind every text; none where there is no such tokenizer."""
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return []
    plain, whole = tokenizer.encode("A", add_special_tokens=False), tokenizer.encode("A")
    for start in range(len(whole)):
        if plain and whole[start : start + len(plain)] == plain:
            return list(map(str, tokenizer.convert_ids_to_tokens(whole[start + len(plain) :])))
    return []


def lacking_bos(model: Any, text: str, tokens: Sequence[int]) -> str | None:
    """Return the token for the beginning of a text that a model's tokenizer puts there and its backend does not.

    The harness's backends that ask a server (``local-completions``) send none unless they are told to, while ``hf``
    does as the tokenizer does. Of a tokenizer at the server, nothing tells what it does.

    Args:
        model: The backend.
        text: A prompt.
        tokens: Its tokens as the backend sends them.
    """
    tokenizer = getattr(model, "tokenizer", None)
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or not hasattr(model, "tokenizer_backend") or not callable(tokenizer) or list(tokens[:1]) == [bos]:
        return None
    return str(tokenizer.bos_token) if tokenizer(text)["input_ids"][:1] == [bos] else None


class Watch:
    """Encodings of one task's requests, filled while the harness encodes them.

    Args:
        task: The task's name; a later watch of the same task takes this one's place, say after a run that failed.
        requests: The task's pairs of context and continuation.
        check: Called once, with this watch, when all are encoded: before the first forward pass.

    Attributes:
        encoded: Encoding of each request seen so far.
        requests: All of them; the harness may encode one twice.
        tokenizer: The backend's, None until the first request is encoded and where the backend has none.
        lacking: Token for the beginning of a text that the backend leaves out; see :func:`lacking_bos`.
    """

    def __init__(self, task: str, requests: Iterable[Request], check: Callable[["Watch"], None]) -> None:
        self.encoded: dict[Request, Encoded] = {}
        self.requests = frozenset(requests)
        self.tokenizer: Any = None
        self.lacking: str | None = None
        #: Requests that a backend without a tokenizer sent as text.
        self.sent: set[Request] = set()
        self._waiting = set(self.requests)
        self._check = check
        _watches[task] = self
        _watch_encoders()

    def see(self, request: Request, encoded: Encoded, tokenizer: Any) -> None:
        """Note the encoding of a request of ours."""
        if request not in self._waiting:
            return
        self._waiting.remove(request)
        self.encoded[request], self.tokenizer = encoded, tokenizer
        if not self._waiting:
            self._check(self)


def sent_as_text(requests: Iterable[Request]) -> None:
    """Note that a backend sends requests to a server as text, so that nothing is known of their tokens."""
    for request in requests:
        for watch in list(_watches.values()):
            if request in watch.requests:
                watch.sent.add(request)


_watches: weakref.WeakValueDictionary[str, Watch] = weakref.WeakValueDictionary()


#: Tokens that a backend takes beyond its ``max_length``, the letter included, by the harness's class; the others take
#: none: these two drop the last token before they count, vLLM keeps a place for one that it must generate.
SPARE = {"HFLM": 1, "NEURON_HF": 1, "VLLM": -1}


def _is_cut(model: Any, context: int, continuation: int) -> bool:
    # An encoder-decoder counts its encoder's side alone.
    if getattr(model, "backend", None) == "seq2seq":
        return context > model.max_length
    # By name, since importing a backend loads its engine.
    spare = next((SPARE[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in SPARE), 0)
    return context + continuation > model.max_length + spare


def _watch_encoders() -> None:
    """Wrap the harness's encoder, and those of backends that bring their own (Megatron's and NeMo's do).

    Their scoring is wrapped too: chat servers cannot do it, which the harness says without a way out.
    """
    for kind in _subclasses(LM):
        encode = vars(kind).get("_encode_pair")
        if encode is not None and not hasattr(encode, "__wrapped__"):
            kind._encode_pair = _watched(encode)
        score = vars(kind).get("loglikelihood")
        if score is not None and not hasattr(score, "__wrapped__") and kind.__module__.startswith("lm_eval."):
            kind.loglikelihood = _able(score)


def _subclasses(kind: type) -> Iterator[Any]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _able(score: Callable[..., Any]) -> Any:
    @functools.wraps(score)
    def able(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return score(self, *args, **kwargs)
        except NotImplementedError as error:
            raise UserError(
                f"{type(self).__name__} gives no log-likelihoods of letters ({error}); use --model local-completions, "
                "with a server's /v1/completions and the model's tokenizer, or --model hf with its weights"
            ) from error

    return able


def _watched(encode: Callable[[Any, str, str], tuple[list[int], list[int]]]) -> Any:
    @functools.wraps(encode)
    def watched(self: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
        request = (context, continuation)
        ours = [watch for watch in list(_watches.values()) if request in watch.requests]
        # An encoder-decoder has the two in different places, so nothing can merge.
        if not ours or self.backend != "causal":
            context_ids, continuation_ids = encode(self, context, continuation)
        else:
            whole = self.tok_encode(context + continuation)
            context_ids, continuation_ids = split_whole(self.tok_encode(context), whole)
        if any(not watch.encoded for watch in ours):
            lacking = lacking_bos(self, context, context_ids)
            for watch in ours:
                watch.lacking = watch.lacking or lacking
        for watch in ours:
            cut = _is_cut(self, len(context_ids), len(continuation_ids))
            encoded = Encoded(tuple(continuation_ids), len(context_ids), self.max_length, cut)
            watch.see(request, encoded, self.tokenizer)
        return context_ids, continuation_ids

    return watched
