"""Compute the log-likelihood of each letter of each question, distributed over all processes."""

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

#: Ratio of scoring to training batch size; scoring keeps no activations, so it needs less memory.
LARGER = 8
#: The prompts' common prefix is cached if it makes up at least this share of all tokens.
LEAST_SHARE = 0.2


def score(model: Any, examples: Sequence[TokenExample], pad_id: int, batch_size: int) -> FloatArray:
    """Compute the letter log-likelihoods of N questions under the model's present weights.

    The questions are distributed over all processes.

    Args:
        model: Causal language model, wrapped or not; it is left in evaluation mode.
        examples: N questions.
        pad_id: Padding token.
        batch_size: Training batch size; a scoring batch has as many tokens as ``LARGER`` times so
            many questions of average length.

    Returns:
        Shape (N, K), float64, NaN where the letter is absent; the same on every process.
    """
    state = PartialState()
    device = next(model.parameters()).device
    model.eval()
    # Use the lengths of whole prompts: the cached prefix takes memory for each of them.
    lengths = [len(example.input_ids) for example in examples]
    batches = even_batches(lengths, LARGER * batch_size * sum(lengths) / len(lengths), few_sizes=True)
    shared = examples[0].input_ids[: _shared(examples)]
    cache = prefix_cache(model, shared, device, keeps_logits(model)) if shared else None
    if cache is not None:
        examples = [replace(example, input_ids=example.input_ids[len(shared) :]) for example in examples]
    # Sharded models need the same number of forward passes on every process, so the last batch is
    # repeated; a question scored twice overwrites its own scores.
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
    """Return the length of the prompts' common prefix, such as a system prompt, or 0.

    Keys and values of the prefix take memory for each prompt of a batch. A prefix that saves too
    little work therefore counts as 0.
    """
    prompts = [example.input_ids for example in examples]
    # In sorted order, the common prefix of the first and the last prompt is the one of all.
    length = common(min(prompts), max(prompts), 0)
    length = min(length, min(map(len, prompts)) - 1)
    worth = length * len(prompts) >= LEAST_SHARE * sum(map(len, prompts))
    return length if length >= SHORTEST_PREFIX and len(prompts) > 1 and worth else 0
