"""Speed and peak memory of a fit on random weights, calibtune's beside other ways, in one process on one base model.

Weights do not matter for speed, so the model is made on the device; prompts have the lengths of mc_calib_indomain with
a chat template, and its shared beginning. Prints a line a way; ``--json`` appends a line of JSON a way.

  python tests/benchmarks/fit_speed.py --shape 8b --ways check,plain,ours,authors,trl,score,estep --json speed.jsonl

``+`` and a name of ``departures.py`` leaves one idea out,
``+liger`` puts Liger kernels into the base model: these stay, so such ways come last. Examples a second are real prompt
tokens a second over the mean prompt's tokens: batches grouped by length differ in cost, so the median step's rate,
printed beside it, is that of a batch with the median length. Under torchrun each process has a GPU and the rates are of
all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import speed_ways
import torch
import transformers
import yaml
from accelerate import PartialState
from accelerate.utils import gather_object
from departures import FIELDS, NAMES, departing
from peft.helpers import disable_input_dtype_casting
from speed_model import SHAPES, body_size, build, make_rows
from speed_ways import LETTERS, Bench, Clock, Measured, adapted, padded, plain_loss
from transformers.integrations.liger import apply_liger_kernel

from calibtune.data.tokens import collate
from calibtune.models.attention import attention_of_any_shape
from calibtune.models.scores import LARGER, score
from calibtune.recipe import make_recipe
from calibtune.tuning.losses import method_loss
from calibtune.tuning.trainable import add_adapter
from calibtune.tuning.trainer import LIGER

#: Bfloat16 matrix rate of an H100 or H200 by its data sheet, TFLOP/s.
DATA_SHEET = 989
#: Kernels that ``--profile`` shows.
PROFILED = 25


def matrix_rate(device: torch.device) -> float:
    """Bfloat16 TFLOP/s of a large product of random matrices, median of 10."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(13):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / float(np.median(seconds[3:])) / 1e12


@attention_of_any_shape()
def scored(bench: Bench) -> Measured:
    """Letter scoring of all rows by the base model, in the batches that a fit of this batch size scores in."""
    rows, size, clock = bench.rows, bench.recipe.batch_size, Clock(dataclasses.replace(bench, warm=1))
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    clock.mark()
    several = LARGER * size
    score(bench.base, by_length[:several] + by_length[-several:], 0, size)
    clock.mark()
    score(bench.base, rows, 0, size)
    clock.mark()
    tokens = sum(len(row.input_ids) for row in rows) // PartialState().num_processes
    return dataclasses.replace(clock.measured(len(rows), [0, tokens], float("nan")), operations=2)


def e_step(bench: Bench) -> Measured:
    """An E-step over the rows and a sixth as many held-out ones, and its share of an RCFT epoch."""
    count = len(bench.rows)
    with adapted(bench, add_adapter) as model, disable_input_dtype_casting(model):
        # As accelerate has it: the adapter's weights are cast anew in each forward pass.
        model.forward = torch.autocast(bench.device.type, torch.bfloat16)(model.forward)
        measured = scored(dataclasses.replace(bench, base=model, rows=bench.rows + bench.rows[: count // 6]))
        del model.forward
    epoch = count / bench.rates.get(bench.recipe.batch_size, float("nan"))
    seconds = measured.seconds[0]
    return dataclasses.replace(measured, extra={"e_step_s": seconds, "share": seconds / (seconds + epoch)})


def check(bench: Bench) -> Measured:
    """Losses of calibtune and of plain PEFT on 8 batches of 16 rows, and one batch's gradients; no dropout."""
    recipe, device, size = dataclasses.replace(bench.recipe, lora_dropout=0.0), bench.device, 16
    q = torch.full((size, len(LETTERS)), 1 / len(LETTERS), device=device)
    losses: list[list[float]] = [[], []]
    gradients: list[tuple[torch.Tensor, ...]] = [(), ()]
    with adapted(dataclasses.replace(bench, recipe=recipe), add_adapter) as model:
        weights = [p for p in model.parameters() if p.requires_grad]
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)  # zero would hide the adapter's first matrix
        for start in range(0, min(8 * size, len(bench.rows) - size + 1), size):
            rows = bench.rows[start : start + size]
            batch = {name: value.to(device) for name, value in collate(rows, 0).items()}
            if recipe.method == "rcft":
                batch["target"] = q
            for i in (0, 1):
                with torch.autocast(device.type, torch.bfloat16):
                    plain = plain_loss(model, padded(rows, device), recipe, q) if i else None
                    loss = method_loss(model, batch, recipe)[0] if plain is None else plain
                losses[i].append(float(loss.detach()))
                gradients[i] = torch.autograd.grad(loss, weights)
    norms = [float(torch.nn.utils.get_total_norm(g)) for g in gradients]
    apart = float(torch.nn.utils.get_total_norm([a - b for a, b in zip(*gradients, strict=True)]))
    means = np.mean(losses, axis=1)
    extra = {"loss_plain": means[1], "loss_apart": abs(means[0] / means[1] - 1), "gradient_norm": norms[0]}
    extra |= {"gradient_norm_apart": abs(norms[0] / norms[1] - 1), "gradient_apart": apart / norms[1]}
    return Measured(size, loss=float(means[0]), extra=extra)


WAYS = speed_ways.TRAINING | {"score": scored, "estep": e_step, "check": check}


def runs(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Way, method and batch size of each measurement; a way that has but one method or batch size comes once."""
    for way in args.ways:
        name = way.split("+")[0]
        methods = {"authors": ["rcft"], "trl": ["cft"], "score": ["cft"], "estep": ["rcft"]}.get(name, args.methods)
        for method in methods:
            for batch in {"authors": [2], "check": [16]}.get(name, args.batch_sizes):
                yield way, method, batch


def measure(base: Any, args: argparse.Namespace, run: tuple[str, str, int]) -> dict[str, Any]:
    """One measurement's numbers."""
    (name, *options), method, batch = run[0].split("+"), *run[1:]
    flags = {"method": method, "batch_size": batch, "quantization": args.quantization}
    extra = args.recipe_extra | {key: value for name in options for key, value in FIELDS.get(name, {}).items()}
    recipe = make_recipe({"model": args.shape, "tasks": "none", "device": args.device, **flags}, extra)
    if "liger" in options:
        apply_liger_kernel(base, LIGER)
        base.has_liger = True
    step = batch * recipe.gradient_accumulation * PartialState().num_processes
    steps = args.steps or args.rows // step
    recipe = dataclasses.replace(recipe, max_steps=steps)
    count = max(args.rows, steps * step)
    rows = make_rows(count, SHAPES[args.shape][-1], 150 if args.mean_150 else None)
    bench = Bench(base, rows, recipe, steps, args.seconds, args.warm, args.rates)
    with departing(base, options), profiled(args):
        found = WAYS[name](bench)
    return numbers(found, bench.mean, args)


@contextmanager
def profiled(args: argparse.Namespace) -> Iterator[None]:
    """Print what the kernels took of the GPU's time, warm-up included, where it was asked for."""
    if not args.profile or args.rank:
        yield
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        yield
    kernels = sorted(trace.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    print(f"{sum(kernel.self_device_time_total for kernel in kernels) / 1e6:.3f} s in kernels, of which")
    for kernel in kernels[:PROFILED]:
        print(f"  {kernel.self_device_time_total / 1e6:.3f} s, {kernel.count} times: {kernel.key:.110}")


def numbers(found: Measured, mean: float, args: argparse.Namespace) -> dict[str, Any]:
    """A measurement as rates."""
    values = {"loss": found.loss, **found.extra}
    if found.seconds:
        tokens = sum(gather_object([sum(found.tokens)])) / sum(found.seconds)
        values |= {"examples_s": tokens / mean, "tokens_s": tokens, "mean_tokens": mean, "steps": len(found.seconds)}
        values["median_step_examples_s"] = found.batch * PartialState().num_processes / float(np.median(found.seconds))
        values["tflops"] = found.operations * body_size(args.shape) * tokens / 1e12
        values |= {"of_measured": values["tflops"] / args.matrix_rate, "of_sheet": values["tflops"] / DATA_SHEET}
        values |= {"first_step_s": found.first, "seconds": found.seconds, "tokens": found.tokens}
    if args.device == "cuda":
        values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return values


def attempt(base: Any, args: argparse.Namespace, run: tuple[str, str, int]) -> None:
    """Measure, print and write down; what fails is one line, and the next way goes on."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    try:
        values = measure(base, args, run)
    except Exception as error:
        values = {"error": f"{type(error).__name__}: {' '.join(str(error).split()):.300}"}
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()
    if args.rank:
        return
    shown = [f"{k} {v if k == 'error' else f'{v:.4g}'}" for k, v in values.items() if not isinstance(v, list)]
    print(f"{run[0]} {run[1]} {run[2]}: {', '.join(shown)}", flush=True)
    if args.json:
        about = {name: getattr(args, name) for name in ("shape", "quantization", "card", "matrix_rate", "recipe_extra")}
        about |= {"torch": torch.__version__, "transformers": transformers.__version__}
        about |= {"way": run[0], "method": run[1], "batch_size": run[2], "liger": hasattr(base, "has_liger")}
        about |= {"way_s": time.perf_counter() - started, "processes": PartialState().num_processes}
        with args.json.open("a") as file:
            file.write(json.dumps(about | values) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""

    def words(text: str) -> list[str]:
        return [word.strip() for word in text.split(",") if word.strip()]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none")
    parser.add_argument(
        "--ways",
        type=words,
        default=["plain", "ours"],
        help=f"of {', '.join(WAYS)}; + one or more of {', '.join(sorted(NAMES))}",
    )
    parser.add_argument("--methods", type=words, default=["cft", "rcft"])
    parser.add_argument("--batch-sizes", type=lambda text: [int(word) for word in words(text)], default=[16])
    parser.add_argument("--steps", type=int, default=30, help="0: one epoch of the rows, so that the longest are seen")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="end a way after so many, not counting the E-step; three steps are measured in any case",
    )
    parser.add_argument("--warm", type=int, default=3, help="steps not measured")
    parser.add_argument("--rows", type=int, default=2000, help="fewest rows")
    parser.add_argument("--mean-150", action="store_true", help="scale prompts to 150 tokens on average")
    parser.add_argument("--recipe-extra", type=words, default=[], help="key=value,key=value: the recipe's fields")
    parser.add_argument("--profile", action="store_true", help="what each kernel takes; the rates are then no rates")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.recipe_extra = {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in args.recipe_extra)}
    if unknown := [way for way in args.ways if not NAMES | set(WAYS) >= set(way.split("+"))]:
        parser.error(f"unknown ways: {', '.join(unknown)}")
    return args


def main() -> None:
    """Measure each way."""
    args = arguments()
    transformers.logging.set_verbosity_error()
    args.rank = PartialState(cpu=args.device == "cpu").local_process_index
    device = PartialState().device
    args.card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    args.matrix_rate, args.rates = matrix_rate(device), {}
    started = time.perf_counter()
    base = build(args.shape, args.quantization, device)
    if not args.rank:
        print(
            f"{args.card}: {args.matrix_rate:.4g} TFLOP/s of bfloat16 products; {args.shape}, quantization "
            f"{args.quantization}, made in {time.perf_counter() - started:.1f} s",
            flush=True,
        )
    for run in runs(args):
        attempt(base, args, run)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
