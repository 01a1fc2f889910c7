"""What the model's tokenizer makes of a task's requests, read where the harness itself encodes them.

The harness hands a task neither its tokenizer nor token counts, cuts a long prompt from the left with a log line, and
scores letters that share a token alike. All its tokenizing backends go through ``TemplateLM._encode_pair``, so that is
where a task may watch its own requests; nothing is encoded twice and no result is changed.
"""

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lm_eval.api.model import TemplateLM

Request = tuple[str, str]


class Encoded(NamedTuple):
    """The token ids of a request's continuation, the context's token count and whether the model must cut it."""

    tokens: tuple[int, ...]
    context: int
    #: Tokens that the model takes, ``max_length`` of the backend.
    limit: int
    cut: bool


class Watch:
    """Encodings of one task's requests, filled while the harness encodes them.

    Args:
        task: The task's name; a later watch of the same task takes this one's place, say after a run that failed.
        requests: The task's pairs of context and continuation.
        check: Called once, with this watch, when all are encoded: before the first forward pass.

    Attributes:
        encoded: Encoding of each request seen so far.
    """

    def __init__(self, task: str, requests: Iterable[Request], check: Callable[["Watch"], None]) -> None:
        self.encoded: dict[Request, Encoded] = {}
        self._waiting = set(requests)
        self._check = check
        self._task = task
        _watches[task] = self
        _watch_encoder()

    def see(self, request: Request, encoded: Encoded) -> None:
        """Note the encoding of a request if it is one of ours."""
        if request not in self._waiting:
            return
        self._waiting.remove(request)
        self.encoded[request] = encoded
        if not self._waiting:
            del _watches[self._task]
            self._check(self)


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


def _watch_encoder() -> None:
    encode = TemplateLM._encode_pair
    if hasattr(encode, "__wrapped__"):
        return

    @functools.wraps(encode)
    def watched(self: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = encode(self, context, continuation)
        for watch in list(_watches.values()):
            cut = _is_cut(self, len(context_ids), len(continuation_ids))
            encoded = Encoded(tuple(continuation_ids), len(context_ids), self.max_length, cut)
            watch.see((context, continuation), encoded)
        return context_ids, continuation_ids

    TemplateLM._encode_pair = watched
