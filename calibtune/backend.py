"""``hf-prefix``: lm_eval's hf backend, with what prompts share computed once and logits only where they are read.

The stock backend runs every prompt from its first token and takes the softmax over the vocabulary at every position.
Letter tasks ask many questions after the same system prompt and the same few-shot examples, and read one position.

lm_eval 0.4.13 finds backends only in its own list, so `lm_eval --model hf-prefix` does not know this one;
`calibtune eval --backend hf-prefix` does, and so does Python after ``import calibtune.backend``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import DynamicCache

from calibtune.prefix import SHORTEST_PREFIX, common, prefix_cache, repeated

#: Continuations longer than this are not worth it.
LONGEST_CONTINUATION = 8
#: A cluster of prompts takes one more while this share of what they have in common remains.
KEPT = 0.8

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Cluster:
    """Prompts that begin alike."""

    #: Tokens that all of them begin with, 0 where none are computed once.
    shared: int
    prompts: tuple[Tokens, ...]


def clusters(prompts: Sequence[Tokens], spare: int) -> Iterator[Cluster]:
    """Split prompts into clusters that share a beginning.

    Args:
        prompts: Distinct.
        spare: Last tokens of each prompt that must stay its own.

    Yields:
        Clusters of at least one prompt; each prompt is in one.

    Example:
        >>> a, b = (*range(20), 7, 1), (*range(20), 8, 1)
        >>> [(c.shared, len(c.prompts)) for c in clusters([a, (5, 6), b], 1)]
        [(20, 2), (0, 1)]
    """
    members: list[Tokens] = []
    shared = 0
    for prompt in sorted(prompts):
        alike = common(members[-1], prompt, spare) if members else 0
        # Sorted, so what a prompt has in common with all before is the least of the neighbours'.
        rest = min(shared, alike) if len(members) > 1 else alike
        if members and rest >= max(SHORTEST_PREFIX, KEPT * shared if len(members) > 1 else 0):
            members.append(prompt)
            shared = rest
            continue
        if members:
            yield Cluster(shared if len(members) > 1 else 0, tuple(members))
        members, shared = [prompt], 0
    if members:
        yield Cluster(shared if len(members) > 1 else 0, tuple(members))


@register_model("hf-prefix")
class PrefixLM(HFLM):
    """lm_eval's ``hf`` with another way to score short continuations; all arguments are its.

    Log-likelihoods equal the stock backend's up to the rounding of the model's dtype. Requests with long continuations,
    and models that are not causal or keep another kind of cache, take the stock way.
    """

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if self.backend != "causal" or longest > LONGEST_CONTINUATION or not str(self.batch_size).isdigit():
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        waiting: dict[Tokens, list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            waiting.setdefault(self._fed(context, continuation), []).append(i)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        size = override_bs or int(self.batch_size)
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Scoring, prefixes once") as bar:
            for cluster in clusters(list(waiting), longest):
                shared = cluster.prompts[0][: cluster.shared]
                cache = prefix_cache(self._forward, shared, self.device) if shared else None
                # Longest first, so that memory runs out at once or not at all.
                prompts = sorted(cluster.prompts, key=len, reverse=True)
                for start in range(0, len(prompts), size):
                    batch = prompts[start : start + size]
                    for prompt, logs in zip(batch, self._log_probs(batch, cluster, cache, longest), strict=True):
                        for i in waiting[prompt]:
                            answers[i] = self._answer(logs, requests[i])
                            bar.update()
        return answers

    def _fed(self, context: list[int], continuation: list[int]) -> Tokens:
        """What the model is fed: all but the last token, cut from the left as the stock backend cuts it."""
        return tuple((context + continuation)[-(self.max_length + 1) :][:-1])

    def _answer(self, logs: torch.Tensor, request: Any) -> tuple[float, bool]:
        key, _, continuation = request
        rows = logs[-len(continuation) :]
        tokens = torch.tensor(continuation, device=rows.device)
        value = float(rows.gather(1, tokens[:, None]).sum())
        answer = (value, bool((rows.argmax(-1) == tokens).all()))
        if key is not None:
            self.cache_hook.add_partial("loglikelihood", key, answer)
        return answer

    def _log_probs(
        self, prompts: Sequence[Tokens], cluster: Cluster, cache: DynamicCache | None, last: int
    ) -> list[torch.Tensor]:
        """Log-probabilities of the whole vocabulary after each prompt's last tokens; each at most (last, V)."""
        skip = cluster.shared if cache is not None else 0
        own = [prompt[skip:] for prompt in prompts]
        width = max(map(len, own))
        # Padded on the right, where causal attention never looks.
        ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in own], device=self.device)
        wanted = [range(max(len(tokens) - last, 0), len(tokens)) for tokens in own]
        places = sorted({place for places in wanted for place in places})
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            options = {"past_key_values": repeated(cache, len(own)), "use_cache": True}
        logits = self._forward(ids, logits_to_keep=torch.tensor(places, device=self.device), **options).logits
        logs = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        index = {place: i for i, place in enumerate(places)}
        return [logs[row, [index[place] for place in places]] for row, places in enumerate(wanted)]

    def _forward(self, ids: torch.Tensor, **options: Any) -> Any:
        mixed = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            return self.model(ids, **options)
