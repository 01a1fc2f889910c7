"""``--backend vllm`` against lm_eval's own vLLM backend and hf: questions a second and log-likelihoods.

Both vLLM backends run on one engine, in turn, each time with an empty prefix cache. Run it where vLLM is
installed, from the folder of the data mirror (here ../shared/data/hub):

  python tests/benchmarks/vllm_scoring.py --model M [--dtype bfloat16] [--limit 100] [--repeats 3] [--output F.json]
      [--engine enforce_eager=True]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from datetime import date
from importlib.metadata import packages_distributions, version
from pathlib import Path

import numpy as np
from scoring import scored

from calibtune.commands.models import key_values
from calibtune.evaluation.hf_letters import LetterLM
from calibtune.evaluation.hf_prefix import PrefixLM


def both(args):
    """Return our backend and lm_eval's, on one engine."""
    # Tests collect this file where there is no vLLM.
    from calibtune.evaluation.vllm_letters import VLLM, VllmLM

    ours = VllmLM(args.model, dtype=args.dtype, seed=0, **args.engine)
    stock = copy.copy(ours)
    stock.__class__ = VLLM
    return {"vllm": ours, "lm_eval vllm": stock}


def measured(backends, args, shots, repeats):
    """Return seconds and log-likelihoods of each backend, by name, each run with an empty cache."""
    found = {name: [] for name in backends}
    for _ in range(repeats):
        for name, lm in backends.items():
            if hasattr(lm.model, "reset_prefix_cache"):
                lm.model.reset_prefix_cache()
            found[name].append(scored(lm, args, shots))
            print(f"{shots}-shot, {name}: {found[name][-1][0]:.1f} s", flush=True)
    return found


def main() -> None:
    """Print medians and their ratio, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="mc_calib_openbookqa")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hf-repeats", type=int, default=1, help="of hf and hf-prefix; 0: compare with lm_eval's vLLM")
    parser.add_argument("--device", default="cpu", help="of hf and hf-prefix")
    parser.add_argument("--batch-size", type=int, default=16, help="of hf and hf-prefix")
    parser.add_argument("--engine", type=key_values, default={}, help="arguments of vLLM")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    started = time.perf_counter()
    engines = both(args)
    print(f"vLLM started in {time.perf_counter() - started:.0f} s", flush=True)
    options = {"pretrained": args.model, "dtype": args.dtype, "device": args.device, "batch_size": args.batch_size}
    hf = {"hf": LetterLM(**options, softmax_dtype="float32"), "hf-prefix": PrefixLM(**options, softmax_dtype="float32")}
    rows = []
    for shots in args.shots:
        found = measured(engines, args, shots, args.repeats)
        if args.hf_repeats:
            found |= measured(hf, args, shots, args.hf_repeats)
        reference = "hf" if args.hf_repeats else "lm_eval vllm"
        exact = found[reference][0][1]
        apart = {name: float(np.abs(runs[0][1] - exact).max()) for name, runs in found.items()}
        seconds = {name: [round(seconds, 3) for seconds, _ in runs] for name, runs in found.items()}
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        ratio = medians["lm_eval vllm"] / medians["vllm"]
        rows.append({"shots": shots, "questions": args.limit, "seconds": seconds, f"apart_from_{reference}": apart})
        rows[-1]["times_as_fast_as_lm_eval"] = round(ratio, 2)
        speeds = ", ".join(f"{name} {args.limit / value:.2f}" for name, value in medians.items())
        print(f"{shots}-shot, questions a second: {speeds}; {ratio:.2f} times lm_eval's vLLM; {apart}", flush=True)
    if args.output:
        package = packages_distributions()["vllm"][0]
        about = {
            "date": date.today().isoformat(),
            "model": Path(args.model).name,
            "task": args.task,
            "dtype": args.dtype,
            "vllm": f"{package} {version(package)}",
            "engine": args.engine,
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        args.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
