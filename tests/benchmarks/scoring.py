"""hf-prefix against lm_eval's stock hf backend, zero-shot and 5-shot: wall time and log-likelihoods.

Run it from the folder of the data mirror (here ../shared/data/hub):

  python tests/benchmarks/scoring.py --model M [--dtype bfloat16] [--device cuda] [--limit 100] [--repeats 3]

How far the stock backend's own numbers move with its batch size is shown beside: what rounding alone does.

With ``--shape 8b`` the model has random weights, made on the device, and M gives the tokenizer alone.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from speed_model import SHAPES, build
from transformers import AutoTokenizer

from calibtune.data.tasks import task_manager
from calibtune.evaluation.hf_prefix import PrefixLM


def scored(lm, args, shots):
    """Seconds of the requests' scoring alone, and the log-likelihoods."""
    seconds = []
    original = lm.loglikelihood

    def timed(requests, *more, **options):
        started = time.perf_counter()
        answers = original(requests, *more, **options)
        seconds.append(time.perf_counter() - started)
        return answers

    lm.loglikelihood = timed
    run = simple_evaluate(
        lm,
        tasks=[args.task],
        num_fewshot=shots,
        limit=args.limit,
        apply_chat_template=True,
        task_manager=task_manager([args.task]),
        bootstrap_iters=0,
    )
    lm.loglikelihood = original
    samples = sorted(run["samples"][args.task], key=lambda sample: sample["doc_id"])
    return seconds[0], np.array([response[0][0] for sample in samples for response in sample["resps"]])


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="mc_calib_openbookqa")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none", help="of a random model")
    args = parser.parse_args()
    options = {
        "pretrained": args.model,
        "dtype": args.dtype,
        "device": args.device,
        "batch_size": args.batch_size,
        "softmax_dtype": "float32",
    }
    if args.shape:
        options["pretrained"] = build(args.shape, args.quantization, torch.device(args.device))
        options["tokenizer"] = AutoTokenizer.from_pretrained(args.model)
    backends = {"hf": HFLM(**options), "hf-prefix": PrefixLM(**options)}
    for shots in (0, 5):
        found = {name: [scored(lm, args, shots) for _ in range(args.repeats)] for name, lm in backends.items()}
        medians = {name: float(np.median([seconds for seconds, _ in runs])) for name, runs in found.items()}
        again = scored(HFLM(**options | {"batch_size": args.batch_size // 2}), args, shots)[1]
        apart, rounding = (np.abs(found["hf"][0][1] - other).max() for other in (found["hf-prefix"][0][1], again))
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in medians.items())
        ratio = medians["hf"] / medians["hf-prefix"]
        print(
            f"{shots}-shot: {seconds}, {ratio:.2f} times as fast; log-likelihoods at most {apart:.2g} apart, "
            f"{rounding:.2g} of hf and hf with half the batch size",
            flush=True,
        )


if __name__ == "__main__":
    main()
