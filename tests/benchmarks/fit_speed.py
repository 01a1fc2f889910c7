"""Examples a second and peak memory of a fit, beside the way of the paper's released code, on random weights.

Weights do not matter for speed, so the model is made on the device; prompts have lengths as those of mc_calib_indomain
(a log-normal around 130 tokens). Both ways run in one process, one after the other, the first steps not counted.

  python tests/benchmarks/fit_speed.py --shape 8b --method rcft --batch-size 16 --steps 30
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from calibtune.modeling import add_adapter
from calibtune.recipe import make_recipe
from calibtune.tokens import TokenExample, collate
from calibtune.trainer import CalibrationTrainer, Questions, training_arguments

#: Width, width of the MLP, layers, heads, heads of keys and values, vocabulary.
SHAPES = {
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "tiny": (64, 128, 2, 4, 2, 512),
}
LETTERS = (32, 33, 34, 35)
#: Steps that warm up.
WARM = 3


@dataclass
class Rows:
    """What the trainer asks of a training set, with rows made up."""

    rows: list[TokenExample]
    seed: int = 0
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenExample:
        return self.rows[index]


def make_rows(count: int, vocabulary: int) -> list[TokenExample]:
    """Random prompts of plausible lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(130), 0.45, count)), 40, 1000).astype(int)
    return [
        TokenExample(tuple(rng.integers(vocabulary, size=n).tolist()), LETTERS, int(rng.integers(4)), i)
        for i, n in enumerate(lengths)
    ]


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def ours(model, recipe, rows) -> tuple[float, float]:
    """Examples a second and mean prompt tokens an example, through calibtune's own trainer."""
    clock = Clock()
    with TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, Path(folder))
        arguments.save_strategy = "no"
        held_out = tuple(rows[: 2 * recipe.batch_size])
        trainer = CalibrationTrainer(model, arguments, recipe, Questions(Rows(rows), held_out, 0))
        trainer.add_callback(clock)
        trainer.train()
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    seconds = np.diff(clock.ends)[WARM:]
    return recipe.batch_size / float(np.median(seconds)), float(np.mean([len(row.input_ids) for row in rows]))


def authors(model, rows, steps: int, precision: str) -> float:
    """Examples a second of: batch 2, padded to 2,048, logits at all places, two forward passes, checkpointing."""
    device = next(model.parameters()).device
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    seconds = []
    for step in range(steps):
        batch = {k: v.to(device) for k, v in collate(rows[2 * step : 2 * step + 2], 0).items()}
        ids = torch.nn.functional.pad(batch["input_ids"], (0, 2048 - batch["input_ids"].shape[1]))
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            first = model(input_ids=ids).logits.float()
            second = model(input_ids=ids).logits.float()
        places = torch.arange(2, device=device)
        letters = torch.tensor(LETTERS, device=device)[batch["gold"]]
        loss = torch.nn.functional.cross_entropy(first[places, batch["answer"]], letters)
        loss = loss + second[places, batch["answer"]][:, list(LETTERS)].softmax(-1).pow(2).sum(1).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 / float(np.median(seconds[min(WARM, steps - 1) :]))


def main() -> None:
    """Print both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--method", choices=("cft", "rcft"), default="cft")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    width, mlp, layers, heads, kv_heads, vocabulary = SHAPES[args.shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
    )
    flags = {name: getattr(args, name) for name in ("method", "precision", "batch_size", "device")}
    recipe = make_recipe({"model": args.shape, "tasks": "none", "max_steps": args.steps, **flags}, {})
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        base = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    body = sum(p.numel() for name, p in base.named_parameters() if "embed" not in name and "lm_head" not in name)
    model = add_adapter(base, recipe)
    rows = make_rows(args.batch_size * args.steps, vocabulary)
    rate, tokens = ours(model, recipe, rows)
    peak = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else float("nan")
    slow = authors(model, rows, max(args.steps // 5, 2), args.precision)
    print(f"{args.shape} {args.method}, batch {args.batch_size}: {rate:.2f} examples/s ({tokens:.0f} tokens each), "
          f"{4 * body * tokens * rate / 1e12:.2f} TFLOP/s (4 N T), peak {peak:.1f} GiB")  # fmt: skip
    print(f"the released code's way, batch 2: {slow:.2f} examples/s; ours is {rate / slow:.1f} times as fast")


if __name__ == "__main__":
    main()
