"""What our tasks add to the harness's wall time, on the same requests of a real model.

    cd ../shared/data/hub && OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \\
        python ~-/tests/benchmarks/overhead.py --model DIR [--limit 200] [--device cpu]

DIR is a Hugging Face model, SmolLM2-135M-Instruct say. ``mc_calib_openbookqa`` is compared with a task as the harness's
own are written: the same prompts from Jinja, plain accuracy. Two runs of a model differ by more than what is measured,
so the model's forward passes are replaced by ready-made log-likelihoods for the difference, and run once for what it is
a share of. The bar: under 3 %.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

TASKS = Path(__file__).resolve().parents[2] / "lm_eval_tasks"
OURS = "mc_calib_openbookqa"
STOCK = r"""
task: stock_openbookqa
dataset_path: allenai/openbookqa
dataset_name: main
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
description: "You answer multiple-choice questions. Reply with the letter of the correct option and nothing else.\n\n"
doc_to_text: "{{question_stem.strip()}}\nOptions:\n{% for label in choices.label %}{{label}}. \
  {{choices.text[loop.index0].strip()}}\n{% endfor %}Answer with only a single letter:"
doc_to_choice: "{{choices.label}}"
doc_to_target: "{{choices.label.index(answerKey)}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


class Instant(HFLM):
    """The backend with its tokenizer and batches, and no forward pass."""

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        return [(-1.0 - (hash((tuple(request[1]), tuple(request[2]))) % 1000) / 100, False) for request in requests]


def run(model: HFLM, task: str, manager: TaskManager, limit: int) -> tuple[float, list[Any]]:
    """Seconds of one evaluation, and its requests."""
    with contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        found = simple_evaluate(model=model, tasks=[task], task_manager=manager, limit=limit, log_samples=True)
        seconds = time.perf_counter() - start
    return seconds, [pair for sample in found["samples"][task] for pair in sample["arguments"]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    options = {"pretrained": args.model, "dtype": "float32", "device": args.device, "batch_size": args.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stock.yaml").write_text(STOCK)
        manager = TaskManager(include_path=[str(TASKS), folder], include_defaults=False)
        instant = Instant(**options)
        # The first of each loads the data set, which is neither's.
        requests = {task: run(instant, task, manager, args.limit)[1] for task in (OURS, "stock_openbookqa")}
        if requests[OURS] != requests["stock_openbookqa"]:
            raise SystemExit(f"not the same requests: {requests[OURS][0]!r} and {requests['stock_openbookqa'][0]!r}")
        times: dict[str, list[float]] = {task: [] for task in requests}
        for _ in range(args.repeat):
            for task, seconds in times.items():
                seconds.append(run(instant, task, manager, args.limit)[0])
        ours, stock = min(times[OURS]), min(times["stock_openbookqa"])
        whole = run(HFLM(**options), "stock_openbookqa", manager, args.limit)[0]
    print(f"{args.limit} questions, {len(requests[OURS])} requests, on {args.device}, batch size {args.batch_size}")
    print(f"without forward passes, best of {args.repeat}: ours {ours:.3f} s, stock-like {stock:.3f} s")
    print(f"with forward passes, stock-like: {whole:.2f} s")
    print(f"ours adds {ours - stock:.3f} s: {(ours - stock) / whole:.2%}")


if __name__ == "__main__":
    main()
