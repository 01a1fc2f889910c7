"""Score questions: the log-likelihood of each letter under a model, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from calibtune.data.tokens import TokenExample, collate, even_batches
from calibtune.models.heads import answer_logits, keeps_logits, letter_log_likelihoods
from calibtune.models.prefix import SHORTEST_PREFIX, common, prefix_cache, repeated
from harness_ext.binning import FloatArray
from harness_ext.ragged import ragged

#: Scoring keeps no activations, so it takes so many times larger batches than training does.
LARGER = 8
#: Share of all tokens from which the prompts' common beginning is computed once.
LEAST_SHARE = 0.2


def score(model: Any, examples: Sequence[TokenExample], pad_id: int, batch_size: int) -> FloatArray:
    """Letter log-likelihoods of some questions under the present model, each scored once over all processes.

    Args:
        model: Causal language model, wrapped or not; left in evaluation mode.
        examples: N questions.
        pad_id: Token to pad with.
        batch_size: In training; a forward pass takes the tokens of ``LARGER`` times so many average questions.

    Returns:
        Shape (N, K), float64, NaN where a question has fewer letters; the same on every process.
    """
    state = PartialState()
    device = next(model.parameters()).device
    model.eval()
    # By whole prompts: what they begin with is kept for each, however short the rest is.
    lengths = [len(example.input_ids) for example in examples]
    batches = even_batches(lengths, LARGER * batch_size * sum(lengths) / len(lengths))
    shared = examples[0].input_ids[: _shared(examples)]
    cache = prefix_cache(model, shared, device, keeps_logits(model)) if shared else None
    if cache is not None:
        examples = [replace(example, input_ids=example.input_ids[len(shared) :]) for example in examples]
    # Sharded models need as many forward passes on every process; what is scored twice is written twice.
    batches += batches[-1:] * (-len(batches) % state.num_processes)
    mine = batches[state.process_index :: state.num_processes]
    found: list[tuple[int, list[float]]] = []
    with torch.no_grad():
        for rows in tqdm(mine, desc="scoring", leave=False, delay=2, disable=not state.is_main_process):
            batch = {k: v.to(device) for k, v in collate([examples[i] for i in rows], pad_id).items()}
            past = None if cache is None else repeated(cache, len(rows))
            values = letter_log_likelihoods(answer_logits(model, batch, past), batch["letter_ids"]).tolist()
            found += [(i, v[: len(examples[i].letter_ids)]) for i, v in zip(rows, values, strict=True)]
    return ragged(values for _, values in sorted(dict(gather_object(found)).items()))


def _shared(examples: Sequence[TokenExample]) -> int:
    """Tokens that all prompts begin with, such as a chat template's system prompt; 0 where they are not worth it.

    Their keys and values are kept for each prompt of a batch, which takes memory, so they must be a part of the work.
    """
    prompts = [example.input_ids for example in examples]
    # What the first and the last in order have in common, all between them have.
    length = common(min(prompts), max(prompts), 0)
    length = min(length, min(map(len, prompts)) - 1)
    worth = length * len(prompts) >= LEAST_SHARE * sum(map(len, prompts))
    return length if length >= SHORTEST_PREFIX and len(prompts) > 1 and worth else 0
