"""Speed and peak memory of a fit on random weights, calibtune's beside other ways, in one process on one base model.

Weights do not matter for speed, so the model is made on the device; prompts have the lengths of mc_calib_indomain with
a chat template, and its shared beginning. Prints a line a way; ``--json`` appends a line of JSON a way.

  python tests/benchmarks/fit_speed.py --shape 8b --ways check,plain,ours,authors,trl,score,estep --json speed.jsonl

``+compile`` compiles each decoder layer, ``+liger`` puts Liger kernels into the base model: these stay, so such ways
come last. Examples a second are real prompt tokens a second over the mean prompt's tokens: batches grouped by length
differ in cost, so the median step's rate, printed beside it, is that of a batch with the median length.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import speed_ways
import torch
import transformers
import yaml
from peft.helpers import disable_input_dtype_casting
from speed_ways import LETTERS, Bench, Clock, Measured, adapted, compiled, mean_length, padded, plain_loss
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.liger import apply_liger_kernel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from calibtune.estep import score
from calibtune.losses import method_loss
from calibtune.modeling import add_adapter, nf4
from calibtune.recipe import make_recipe
from calibtune.tokens import TokenExample, collate

FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "vocab_size")  # fmt: skip
SHAPES = {
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "tiny": (64, 128, 2, 4, 2, 512),
}
#: Bfloat16 matrix rate of an H100 or H200 by its data sheet, TFLOP/s.
DATA_SHEET = 989
#: Prompt lengths of mc_calib_indomain at some quantiles.
QUANTILES = np.array([0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
LENGTHS = np.array([60, 70, 78, 91, 121, 292, 444, 712])
#: Between two quantiles lengths grow by this power, which makes the mean 118, as measured.
BEND = 1.65
LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
#: Tokens at the beginning that all prompts share.
SHARED = 28


def make_rows(count: int, vocabulary: int, mean: float | None) -> list[TokenExample]:
    """Random prompts with the task's lengths, scaled to a mean where one is given."""
    rng = np.random.default_rng(0)
    u = rng.permutation((np.arange(count) + 0.5) / count)
    part = np.searchsorted(QUANTILES, u, side="right") - 1
    place = (u - QUANTILES[part]) / (QUANTILES[part + 1] - QUANTILES[part])
    lengths = LENGTHS[part] * (LENGTHS[part + 1] / LENGTHS[part]) ** (place**BEND)
    lengths = np.rint(lengths * (mean / lengths.mean() if mean else 1)).astype(int)
    shared = rng.integers(vocabulary, size=SHARED).tolist()
    return [
        TokenExample((*shared, *rng.integers(vocabulary, size=n - SHARED).tolist()), LETTERS, int(rng.integers(4)), i)
        for i, n in enumerate(lengths)
    ]


def build(shape: str, quantisation: str, device: torch.device) -> Any:
    """A Llama with random weights, made on the device."""
    config = LlamaConfig(**dict(zip(FIELDS, SHAPES[shape], strict=True)), max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device("meta" if quantisation == "nf4" else device):
        base = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    if quantisation == "nf4":
        fill_nf4(base, device)
    base.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)  # frequencies in float32
    return base.requires_grad_(False)


def fill_nf4(base: Any, device: torch.device) -> None:
    """Give a model on the meta device random weights, its body's linear layers in NF4, one at a time."""
    import bitsandbytes as bnb
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers import AutoHfQuantizer
    from transformers.utils.quantization_config import QuantizationMethod

    quantised = nf4(torch.bfloat16)
    replace_with_bnb_linear(base, modules_to_not_convert=["lm_head"], quantization_config=quantised)
    for module in base.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            value = torch.empty(old.shape, dtype=torch.bfloat16, device=device)
            value = value.fill_(1) if old.dim() == 1 else value.normal_(std=0.02)
            four_bit = isinstance(old, bnb.nn.Params4bit)
            new = bnb.nn.Params4bit(value, requires_grad=False, **old.__dict__).to(device) if four_bit else value
            setattr(module, name, new if four_bit else torch.nn.Parameter(new, requires_grad=False))
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # see calibtune.modeling.load_base
    # What transformers and PEFT know a loaded 4-bit model by.
    base.is_loaded_in_4bit = base.is_quantized = True
    base.quantization_method = QuantizationMethod.BITS_AND_BYTES
    base.hf_quantizer = AutoHfQuantizer.from_config(quantised)
    base.config.quantization_config = quantised


def body_size(shape: str) -> int:
    """Parameters of the body's linear layers."""
    width, mlp, layers, heads, kv_heads, _ = SHAPES[shape]
    return layers * width * (2 * width + 2 * width // heads * kv_heads + 3 * mlp)


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


def scored(bench: Bench) -> Measured:
    """Letter scoring of all rows by the base model, at four times the batch size."""
    rows, size, clock = bench.rows, 4 * bench.recipe.batch_size, Clock(dataclasses.replace(bench, warm=1))
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    clock.mark()
    score(bench.base, by_length[:size] + by_length[-size:] + by_length[: size // 2], 0, size)
    clock.mark()
    score(bench.base, rows, 0, size)
    clock.mark()
    tokens = sum(len(row.input_ids) for row in rows)
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
    """Loss and gradient of calibtune's loss against the plain one: the same model, the same 16 rows, no dropout."""
    recipe, rows, device = dataclasses.replace(bench.recipe, lora_dropout=0.0), bench.rows[:16], bench.device
    q = torch.full((len(rows), len(LETTERS)), 1 / len(LETTERS), device=device)
    batch = {name: value.to(device) for name, value in collate(rows, 0).items()}
    target = (lambda _, letters: q) if recipe.method == "rcft" else None
    found = []
    with adapted(dataclasses.replace(bench, recipe=recipe), add_adapter) as model:
        weights = [p for p in model.parameters() if p.requires_grad]
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)  # zero would hide the adapter's first matrix
        for loss_of in (
            lambda: method_loss(model, batch, recipe, target)[0],
            lambda: plain_loss(model, padded(rows, device), recipe, q),
        ):
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of()
            found.append((float(loss.detach()), torch.autograd.grad(loss, weights)))
    (loss, gradients), (usual_loss, usual) = found
    norm, usual_norm = (float(torch.nn.utils.get_total_norm(g)) for g in (gradients, usual))
    apart = float(torch.nn.utils.get_total_norm([a - b for a, b in zip(gradients, usual, strict=True)]))
    extra = {"loss_plain": usual_loss, "loss_apart": abs(loss / usual_loss - 1), "gradient_norm": norm}
    extra |= {"gradient_norm_apart": abs(norm / usual_norm - 1), "gradient_apart": apart / usual_norm}
    return Measured(len(rows), loss=loss, extra=extra)


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
    flags = {"method": method, "batch_size": batch, "max_steps": args.steps, "quantisation": args.quantisation}
    recipe = make_recipe({"model": args.shape, "tasks": "none", "device": args.device, **flags}, args.recipe_extra)
    if "liger" in options:
        apply_liger_kernel(base, LIGER)
        base.has_liger = True
    count = max(args.rows, args.steps * batch * recipe.gradient_accumulation)
    rows = make_rows(count, SHAPES[args.shape][-1], 150 if args.mean_150 else None)
    warm = max(args.warm, 6) if "compile" in options else args.warm
    bench = Bench(base, rows, recipe, args.steps, args.seconds, warm, args.rates)
    with compiled(base) if "compile" in options else nullcontext():
        found = WAYS[name](bench)
    return numbers(found, mean_length(rows), args)


def numbers(found: Measured, mean: float, args: argparse.Namespace) -> dict[str, Any]:
    """A measurement as rates."""
    values = {"loss": found.loss, **found.extra}
    if found.seconds:
        tokens = sum(found.tokens) / sum(found.seconds)
        values |= {"examples_s": tokens / mean, "tokens_s": tokens, "mean_tokens": mean, "steps": len(found.seconds)}
        values["median_step_examples_s"] = found.batch / float(np.median(found.seconds))
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
    shown = [f"{k} {v if k == 'error' else f'{v:.4g}'}" for k, v in values.items() if not isinstance(v, list)]
    print(f"{run[0]} {run[1]} {run[2]}: {', '.join(shown)}", flush=True)
    if args.json:
        about = {name: getattr(args, name) for name in ("shape", "quantisation", "card", "matrix_rate", "recipe_extra")}
        about |= {"torch": torch.__version__, "transformers": transformers.__version__}
        about |= {"way": run[0], "method": run[1], "batch_size": run[2], "liger": hasattr(base, "has_liger")}
        about["way_s"] = time.perf_counter() - started
        with args.json.open("a") as file:
            file.write(json.dumps(about | values) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""

    def words(text: str) -> list[str]:
        return [word.strip() for word in text.split(",") if word.strip()]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--quantisation", choices=("none", "nf4"), default="none")
    parser.add_argument("--ways", type=words, default=["plain", "ours"], help=f"of {', '.join(WAYS)}; +compile, +liger")
    parser.add_argument("--methods", type=words, default=["cft", "rcft"])
    parser.add_argument("--batch-sizes", type=lambda text: [int(word) for word in words(text)], default=[16])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end a way after so many, not counting "
                        "the E-step; three steps are measured in any case")  # fmt: skip
    parser.add_argument("--warm", type=int, default=3, help="steps not measured; 6 at least with +compile")
    parser.add_argument("--rows", type=int, default=2000, help="fewest rows")
    parser.add_argument("--mean-150", action="store_true", help="scale prompts to 150 tokens on average")
    parser.add_argument("--recipe-extra", type=words, default=[], help="key=value,key=value: the recipe's fields")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.recipe_extra = {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in args.recipe_extra)}
    if unknown := [way for way in args.ways if not {"compile", "liger", *WAYS} >= set(way.split("+"))]:
        parser.error(f"unknown ways: {', '.join(unknown)}")
    return args


def main() -> None:
    """Measure each way."""
    args = arguments()
    transformers.logging.set_verbosity_error()
    device = torch.device(args.device)
    args.card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    args.matrix_rate, args.rates = matrix_rate(device), {}
    started = time.perf_counter()
    base = build(args.shape, args.quantisation, device)
    print(f"{args.card}: {args.matrix_rate:.4g} TFLOP/s of bfloat16 products; {args.shape}, quantisation "
          f"{args.quantisation}, made in {time.perf_counter() - started:.1f} s", flush=True)  # fmt: skip
    for run in runs(args):
        attempt(base, args, run)


if __name__ == "__main__":
    main()
