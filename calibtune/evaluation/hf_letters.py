"""lm_eval's hf backend as ``calibtune eval`` runs it: prompts whole, and letters read in float32 where they stand.

The stock backend loses a newline at a prompt's end where the tokenizer has one token for it and what stands before it
(:mod:`harness_ext.encoding`). It makes logits in the model's precision at every position: in bfloat16, letters tie.
Letter tasks read one position of each prompt, so that the output layer can run there in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, inf
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import AutoModelForCausalLM, DynamicCache

from calibtune.data.tokens import even_batches
from calibtune.evaluation.whole_prompts import Tokens, WholePrompts
from calibtune.models.adapters import load_adapter
from calibtune.models.heads import check_places, keeps_logits, output_layer, reading, widen
from calibtune.models.loading import REPORTED, check_loaded
from calibtune.models.prefix import prefix_cache, repeated


@dataclass(frozen=True)
class Cluster:
    """Hold prompts that begin alike."""

    #: Tokens that all of them begin with, 0 where none are computed once.
    shared: int
    prompts: tuple[Tokens, ...]


class WholeModel(AutoModelForCausalLM):
    """Load models as transformers does, and refuse those that would give wrong answers."""

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **options: Any) -> Any:
        """Load a model.

        Raises:
            UserError: See :func:`calibtune.models.loading.check_loaded`.
        """
        model, info = AutoModelForCausalLM.from_pretrained(name, *args, **REPORTED, **options)
        check_loaded(model, info, name)
        return model


Item = TypeVar("Item")
#: Waits for a batch: the log-likelihood of each continuation, and whether greedy decoding gives it.
Answers = Callable[[], list[tuple[float, bool]]]


@register_model("hf-letters")
class LetterLM(WholePrompts, HFLM):
    """Score short continuations in float32; otherwise lm_eval's ``hf``, with its arguments.

    In float32, log-likelihoods equal the stock backend's; in bfloat16 they are nearer to float32's. Requests with long
    continuations, and models that are not causal, take the stock way.
    """

    AUTO_MODEL_CLASS = WholeModel
    #: Tokens that a batch may have in any case, however short the prompts are.
    least_tokens = 0

    def _create_model(self, *args: Any, peft: str | None = None, **options: Any) -> None:
        """Load the model as lm_eval does, and an adapter as a fit does.

        lm_eval cuts the embeddings to the tokenizer's size, or adds random rows, before it loads an adapter. Many
        models' vocabularies are larger than their tokenizers', so the letters' log-probabilities would change.
        """
        super()._create_model(*args, **options)
        if peft is not None:
            self._model = load_adapter(self.model, Path(peft))

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **options: Any) -> None:
        """Take a tokenizer that is loaded, whatever its class; lm_eval takes those of two."""
        if tokenizer is None or isinstance(tokenizer, str):
            super()._create_tokenizer(pretrained, tokenizer, **options)
        else:
            self.tokenizer = tokenizer

    def _score_letters(
        self, requests: list[Any], disable_tqdm: bool, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        longest = max(len(continuation) for _, _, continuation in requests)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        batches = self._started(requests, longest, override_bs or self._size(requests))
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Scoring") as bar:
            for numbers, finish in behind(batches):
                for i, answer in zip(numbers, finish(), strict=True):
                    answers[i] = answer
                    if (key := requests[i][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", key, answer)
                bar.update(len(numbers))
        return answers

    def _started(self, requests: Sequence[Any], longest: int, size: int) -> Iterator[tuple[list[int], Answers]]:
        """Start one batch after the other; yield the numbers of its requests, and what waits for their answers."""
        waiting: dict[Tokens, list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            waiting.setdefault(self._fed(context, continuation), []).append(i)
        for cluster in self._clusters(list(waiting), longest):
            shared = cluster.prompts[0][: cluster.shared]
            keeps = keeps_logits(self.model)
            cache = prefix_cache(self._forward, shared, self.device, keeps) if shared else None
            for numbers in self._batches(cluster, cache, size):
                batch = [cluster.prompts[number] for number in numbers]
                asked = [(row, i) for row, prompt in enumerate(batch) for i in waiting[prompt]]
                wanted = [(row, requests[i][2]) for row, i in asked]
                yield [i for _, i in asked], self._answers(batch, cluster, cache, wanted)

    def _clusters(self, prompts: Sequence[Tokens], spare: int) -> Iterable[Cluster]:
        """Group prompts whose common beginning is computed once; here each computes its own."""
        return [Cluster(0, tuple(prompts))]

    def _size(self, requests: Sequence[Any]) -> int:
        """Return the prompts in a batch of the longest; for "auto" what the stock backend finds to fit into memory."""
        if str(self.batch_size).isdigit():
            return int(self.batch_size)
        longest = max(requests, key=lambda request: len(request[1]) + len(request[2]))
        size = int(self._detect_batch_size([longest]))
        self.batch_sizes = {0: size}
        return size

    def _batches(self, cluster: Cluster, cache: DynamicCache | None, size: int) -> list[list[int]]:
        """Return the prompts' numbers in each batch, which costs as much as the stock backend's longest.

        With a ``size`` of 1 each prompt is a batch of its own.

        The stock backend computes every token and keeps log-probabilities of the whole vocabulary for it. Here a token
        that is shared costs its keys and values alone, once for each prompt, and counts as a whole one at most.
        """
        lengths = [len(prompt) for prompt in cluster.prompts]
        if size == 1:  # so that an answer's last bits do not depend on the other questions
            return [[number] for number in range(len(lengths))]
        most = max(size * max(lengths), self.least_tokens)
        if cache is None:
            return even_batches(lengths, most)
        layers: Any = cache.layers
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) / cluster.shared
        made = self.model.config.get_text_config().vocab_size * (self.softmax_dtype or self.model.dtype).itemsize
        own = [length - cluster.shared for length in lengths]
        costs = [max(n, min(length, ceil(length * kept / made))) for n, length in zip(own, lengths, strict=True)]
        found = []
        for batch in even_batches(costs, most):
            enough = max(size * max(own[i] for i in batch), self.least_tokens)
            alike = even_batches([own[i] for i in batch], inf, enough=enough)
            found += [[batch[j] for j in part] for part in alike]
        return found

    def _fed(self, context: list[int], continuation: list[int]) -> Tokens:
        """Return what the model is fed: all but the last token, cut from the left as the stock backend cuts it."""
        return tuple((context + continuation)[-(self.max_length + 1) :][:-1])

    def _answers(
        self,
        prompts: Sequence[Tokens],
        cluster: Cluster,
        cache: DynamicCache | None,
        wanted: Sequence[tuple[int, list[int]]],
    ) -> Answers:
        """Start a forward pass; what is returned waits for it.

        Then it gives the log-likelihood of each wanted continuation, and whether greedy decoding gives it.
        """
        skip = cluster.shared if cache is not None else 0
        own = [prompt[skip:] for prompt in prompts]
        width = max(map(len, own))
        # Padded on the right, where causal attention never looks.
        ids = copied([[*tokens, *[0] * (width - len(tokens))] for tokens in own], self.device)
        # A prompt ends in its continuation but for the last token.
        at = [(row, len(own[row]) - len(tokens) + j, token) for row, tokens in wanted for j, token in enumerate(tokens)]
        read = sorted({(row, place) for row, place, _ in at})
        past = {} if cache is None else {"past_key_values": repeated(cache, len(own))}
        logits = self._logits(ids, copied(read, self.device).T, use_cache=cache is not None, **past)
        logs = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        where = {pair: i for i, pair in enumerate(read)}
        index, tokens = copied([[where[row, place], token] for row, place, token in at], logs.device).T
        values, greedy = later(logs[index, tokens]), later(logs.argmax(-1)[index] == tokens)

        def answers() -> list[tuple[float, bool]]:
            found, best = iter(values()), iter(greedy())
            return [(sum(islice(found, len(c))), all(list(islice(best, len(c))))) for _, c in wanted]

        return answers

    def _logits(self, ids: torch.Tensor, read: torch.Tensor, **options: Any) -> torch.Tensor:
        """Return the logits at N places, shape (N, V); ``read`` holds rows and positions, shape (2, N)."""
        head = output_layer(self.model)
        if head is None:
            # Code that came with the model may take `logits_to_keep` and ignore it, so all places are asked for.
            logits = self._forward(ids, **options).logits
            check_places(logits, ids)
            rows, places = read.to(logits.device)
            return widen(logits[rows, places])
        with reading(head, *read):
            return widen(self._forward(ids, **options).logits[:, 0])

    def _forward(self, ids: torch.Tensor, **options: Any) -> Any:
        mixed = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            return self.model(ids, **options)


def behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item when the next one has been made: answers are waited for while a GPU has the next batch to do."""
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def copied(numbers: Any, device: torch.device) -> torch.Tensor:
    """Return numbers on a device; a GPU copies them when it is there, and goes on computing until then."""
    made = torch.tensor(numbers)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def later(values: torch.Tensor) -> Callable[[], list[Any]]:
    """Begin to copy values to the host, behind what a GPU still has to compute for them; return what waits for them."""
    if not values.is_cuda:
        return values.tolist
    there = values.to("cpu", non_blocking=True)
    done = torch.cuda.current_stream(values.device).record_event()

    def waited() -> list[Any]:
        done.synchronize()
        found: list[Any] = there.tolist()
        return found

    return waited
