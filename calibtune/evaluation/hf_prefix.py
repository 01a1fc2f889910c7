"""``hf-prefix``: :mod:`calibtune.evaluation.hf_letters`, with what prompts share computed once.

The stock backend runs every prompt from its first token. Letter tasks ask many questions after the same system prompt
and the same few-shot examples.

lm_eval 0.4.13 finds backends only in its own list, so `lm_eval --model hf-prefix` does not know this one;
`calibtune eval --backend hf-prefix` does, and so does Python after ``import calibtune.evaluation.hf_prefix``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lm_eval.api.registry import register_model

from calibtune.evaluation.hf_letters import Cluster, LetterLM, Tokens
from calibtune.models.prefix import SHORTEST_PREFIX, common

#: A cluster of prompts takes one more while this share of what they have in common remains.
KEPT = 0.8
#: Tokens that a cluster must save on a GPU, where two small passes take as long as a large one of so many tokens.
GPU_LEAST = 2**12
#: On a CPU it must save ``CPU_LEAST + LAUNCHED / weights`` tokens: each pass reads all weights, and launching a small
#: model's kernels takes longer than computing.
CPU_LEAST, LAUNCHED = 64, 10**8


def clusters(prompts: Sequence[Tokens], spare: int, least: int = 0) -> Iterator[Cluster]:
    """Split prompts into clusters that share a beginning.

    Args:
        prompts: Distinct.
        spare: Last tokens of each prompt that must stay its own.
        least: Tokens that a cluster must save.

    Yields:
        Clusters; each prompt is in one, and those that share too little with others are the last one.

    Example:
        >>> a, b = (*range(20), 7, 1), (*range(20), 8, 1)
        >>> [(c.shared, len(c.prompts)) for c in clusters([a, (5, 6), b, (7, 8)], 1)]
        [(20, 2), (0, 2)]
    """
    members: list[Tokens] = []
    alone: list[Tokens] = []
    shared = 0
    for prompt in [*sorted(prompts), None]:
        alike = common(members[-1], prompt, spare) if members and prompt else 0
        # Sorted, so what a prompt has in common with all before is the least of the neighbors'.
        rest = min(shared, alike) if len(members) > 1 else alike
        if prompt and members and rest >= max(SHORTEST_PREFIX, KEPT * shared if len(members) > 1 else 0):
            members.append(prompt)
            shared = rest
            continue
        if len(members) > 1 and shared * (len(members) - 1) >= least:
            yield Cluster(shared, tuple(members))
        else:
            alone += members
        members, shared = [prompt] if prompt else [], 0
    if alone:
        shared = common(alone[0], alone[-1], spare)
        worth = shared >= SHORTEST_PREFIX and shared * (len(alone) - 1) >= max(least, 1)
        yield Cluster(shared if worth else 0, tuple(alone))


@register_model("hf-prefix")
class PrefixLM(LetterLM):
    """Computes once what prompts begin with; models that keep another kind of cache compute it for each."""

    def _clusters(self, prompts: Sequence[Tokens], spare: int) -> Iterable[Cluster]:
        weights = sum(weight.numel() for weight in self.model.parameters())
        least = {"cuda": GPU_LEAST, "cpu": CPU_LEAST + LAUNCHED // weights}
        return clusters(prompts, spare, least.get(self.device.type, 0))
