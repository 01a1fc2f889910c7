"""Prompts of a batch side by side in one row, without padding, against padded batches of prompts of like lengths.

Forward and backward passes of CFT with an adapter of rank 128 on random weights, the optimizer left out; prompts have
the lengths of mc_calib_indomain, as many as a fit has, of whose batches some are taken. Packed, each prompt sees itself
alone: positions start anew, of which transformers makes a mask; ``--attention varlen`` is PyTorch's own attention over
sequences of varying length, on GPUs only. Every batch is taken in both ways, several times, and the letters'
log-likelihoods are compared.

  python tests/benchmarks/packing.py --shape 135m --batch-sizes 16,64 --batches 4
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from speed_model import SHAPES, build, make_rows
from speed_ways import LETTERS, Rows
from transformers import AttentionInterface

from calibtune.data.tokens import TokenExample, collate
from calibtune.data.training_set import GroupedOrder
from calibtune.models.heads import MODEL_INPUTS
from calibtune.recipe import make_recipe
from calibtune.tuning.trainable import add_adapter

#: Times that each batch is taken in each way after a first, of which the median counts; who goes first alternates.
ROUNDS = 4
#: What a packed batch has beside the model's inputs, by transformers' names: where prompts begin, and the longest.
PLACES = ("cu_seq_lens_q", "max_length_q")


def varying(module, query, key, value, _, scaling: float, cu_seq_lens_q, max_length_q: int, **__: Any) -> Any:
    """Causal attention of each prompt of a row over itself: heads of shape (1, H, T, D) to (1, T, H, D)."""
    from torch.nn.attention import varlen

    known = inspect.signature(varlen.varlen_attn).parameters
    options: dict[str, Any] = {"is_causal": True}  # torch 2.10's name for it
    if "window_size" in known:
        options = {"window_size": (-1, 0), "scale": scaling}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        key, value = (heads.repeat_interleave(module.num_key_value_groups, 1) for heads in (key, value))
    heads = [each[0].transpose(0, 1).to(value.dtype) for each in (query, key, value)]
    places, longest = [cu_seq_lens_q] * 2, [max_length_q] * 2
    return varlen.varlen_attn(*heads, *places, *longest, **options)[None], None


def packed(rows: Sequence[TokenExample]) -> dict[str, Any]:
    """A batch as one row, shape (1, T); ``answer`` holds the places of the prompts' last tokens in it."""
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row.input_ids]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "answer": lengths.cumsum(0) - 1,
        "cu_seq_lens_q": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        "max_length_q": int(lengths.max()),
    }


def letters(model, batch: dict[str, Any]) -> torch.Tensor:
    """Log-likelihoods of the letters at each prompt's last token, shape (B, 4)."""
    base = model.get_base_model()
    states = base.model(**{name: batch[name] for name in (*MODEL_INPUTS, *PLACES) if name in batch}, use_cache=False)[0]
    answer = batch["answer"]
    rows = torch.arange(len(answer), device=answer.device) if len(states) == len(answer) else 0
    return base.lm_head(states[rows, answer]).float().log_softmax(-1)[:, list(LETTERS)]


def step(model, rows: Sequence[TokenExample], way, device: torch.device) -> tuple[float, torch.Tensor]:
    """Seconds of one forward and backward pass, and the letters."""
    batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in way(rows).items()}
    gold = torch.tensor([row.gold for row in rows], device=device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        found = letters(model, batch)
    (-found.gather(1, gold[:, None]).mean()).backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    model.zero_grad()
    return seconds, found.detach()


def width(rows: Sequence[TokenExample]) -> int:
    """Tokens of a padded batch."""
    return len(rows) * max(len(row.input_ids) for row in rows)


def compared(model, batches: list[list[TokenExample]], attention: str, device: torch.device) -> str:
    """Both ways through the same batches, in words."""
    base = model.get_base_model()
    usual = base.config._attn_implementation
    ways = {"padded": (usual, lambda rows: collate(rows, 0)), "packed": (attention, packed)}
    sums, apart = dict.fromkeys(ways, 0.0), 0.0
    for rows in batches:
        seconds, found = {name: [] for name in ways}, {}
        for turn in range(1 + ROUNDS):
            for name in sorted(ways, reverse=turn % 2 > 0):
                implementation, way = ways[name]
                base.set_attn_implementation(implementation)
                taken, found[name] = step(model, rows, way, device)
                seconds[name].append(taken)
        sums = {name: sums[name] + statistics.median(seconds[name][1:]) for name in ways}
        apart = max(apart, float((found["padded"] - found["packed"]).abs().max()))
    base.set_attn_implementation(usual)
    tokens = sum(len(row.input_ids) for rows in batches for row in rows)
    padding = 1 - tokens / sum(map(width, batches))
    shown = ", ".join(f"{name} {value:.2f} s" for name, value in sums.items())
    return (
        f"{len(batches)} batches, {tokens} tokens, {padding:.1%} padding; {shown}, "
        f"{sums['padded'] / sums['packed']:.2f} times as fast; letters at most {apart:.1g} apart"
    )


def main() -> None:
    """Print a line for each batch size and order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none")
    parser.add_argument("--attention", default="sdpa", help="transformers' attn_implementation of the packed way")
    parser.add_argument("--batch-sizes", default="16,64")
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--most-tokens", type=int, default=2**40, help="leave out larger padded batches, for memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    AttentionInterface.register("varlen", varying)
    base = build(args.shape, args.quantization, device)
    if device.type == "cpu":
        base.float()
    with device:
        model = add_adapter(base, make_recipe({"method": "cft", "model": args.shape, "tasks": "none"}, {})).train()
    rows = make_rows(args.rows, SHAPES[args.shape][-1], None)
    for size in map(int, args.batch_sizes.split(",")):
        orders = {"like lengths": list(GroupedOrder(Rows(rows), size)), "random": range(len(rows) // size * size)}
        for order, numbers in orders.items():
            batches = [[rows[i] for i in numbers[start : start + size]] for start in range(0, len(numbers), size)]
            fitting = [rows for rows in batches if width(rows) <= args.most_tokens]
            # Their order is random.
            found = compared(model, fitting[: args.batches], args.attention, device) if fitting else "none is so small"
            print(
                f"batch {size}, {order} ({len(batches) - len(fitting)} of {len(batches)} too large): {found}",
                flush=True,
            )


if __name__ == "__main__":
    main()
