"""Whole runs with the defaults, from the command line to what it writes; each prints a line of JSON.

    cd ../shared/data/paper
    python ~-/tests/benchmarks/whole_runs.py fit --method cft --model DIR --tasks mc_calib_indomain \\
        --apply-chat-template --epochs 3 --output OUT     # `calibtune fit`, and where its seconds went
    python ~-/tests/benchmarks/whole_runs.py plain DIR    # transformers' Trainer with PEFT on the same questions
    python ~-/tests/benchmarks/whole_runs.py score DIR    # `calibtune eval` of 2,000 questions by a random 8B, twice
    python ~-/tests/benchmarks/whole_runs.py shots DIR    # the same, 5-shot, and lm_eval's own hf backend beside it

``plain`` trains 30 steps and extrapolates from the median and from the mean step. ``score`` and ``shots`` take DIR's
tokenizer and chat template and hold the 8B in NF4; their seconds begin once the model is loaded and end with the files.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
#: Steps of ``plain``, questions of ``score``.
STEPS, QUESTIONS = 30, 2000


def since() -> float:
    """Seconds since the process began."""
    return round(time.perf_counter() - STARTED, 2)


def fit(words: list[str]) -> dict[str, Any]:
    """Run ``calibtune fit`` and note its phases and the end of each step."""
    from calibtune import __main__ as command

    found: dict[str, Any] = {"phases": {}, "steps": []}
    build = command.build_parser

    def build_parser(name: str | None) -> Any:
        # Not before: the command first sets what torch reads when it is imported, and how often garbage is searched.
        watch(found)
        return build(name)

    command.build_parser = build_parser
    code = command.main(["fit", *words])
    if code:
        sys.exit(code)
    artifact = json.loads((Path(words[words.index("--output") + 1]) / "calibtune.json").read_text())
    return found | {name: artifact[name] for name in ("seconds", "before", "after", "peak_memory_gib")}


def watch(found: dict[str, Any]) -> None:
    """Import what a fit needs, and note in ``found`` what its phases take from now on."""
    from calibtune.models import sharding
    from calibtune.tuning import fit as fits
    from calibtune.tuning import graphs, steps, trainer

    found["imported"] = since()

    def timed(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def run(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*args, **options)
            finally:
                found["phases"].setdefault(name, []).append(round(time.perf_counter() - begun, 3))

        setattr(owner, name, run)

    for name in ("read_inputs", "_begun", "_scores", "_measures", "add_adapter", "_finish"):
        timed(fits, name)
    for name in ("train", "begin_epoch", "_save_checkpoint", "complete_checkpoint", "await_checkpoint"):
        timed(trainer.CalibrationTrainer, name)
    timed(graphs.StepGraphs, "_keep")
    timed(sharding, "save_whole")
    ended = steps.Progress.on_step_end

    def on_step_end(*args: Any, **options: Any) -> None:
        found["steps"].append(since())
        ended(*args, **options)

    steps.Progress.on_step_end = on_step_end  # type: ignore[method-assign]


def plain(words: list[str]) -> dict[str, Any]:
    """Train some steps as anyone does, and extrapolate to the steps of :func:`fit`."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from calibtune.recipe import Recipe
    from calibtune.tuning.inputs import read_inputs

    (name,) = words
    gpu = torch.cuda.is_available()
    recipe = Recipe(method="cft", model=name, tasks=("mc_calib_indomain",), apply_chat_template=True)
    rows = list(read_inputs(recipe).questions.train.rows)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).to("cuda" if gpu else "cpu")
    adapter = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor([*row.input_ids, row.letter_ids[row.gold]]) for row in batch]
        padded = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        labels = [torch.cat([torch.full_like(row[:-1], -100), row[-1:]]) for row in ids]
        return {
            "input_ids": padded(ids),
            "attention_mask": padded([torch.ones_like(row) for row in ids]),
            "labels": padded(labels, padding_value=-100),
        }

    class Clock(TrainerCallback):
        """Notes when each step ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: Any, **options: Any) -> None:
            self.ends.append(time.perf_counter())

    clock, steps = Clock(), 3 * (len(rows) // recipe.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=recipe.batch_size,
            max_steps=min(STEPS, steps),
            learning_rate=recipe.learning_rate,
            bf16=gpu,
            use_cpu=not gpu,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
        )
        model = get_peft_model(base, adapter)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[clock])
        trainer.train()
        trained = time.perf_counter()
        model.save_pretrained(folder)
        saving = time.perf_counter() - trained
    gaps = np.diff(clock.ends)
    first = clock.ends[0] - STARTED
    whole = {
        way: first + (steps - 1) * float(of(gaps)) + saving for way, of in (("median", np.median), ("mean", np.mean))
    }
    return {"first_step": first, "steps": gaps.tolist(), "whole_by": whole}


def shots(words: list[str]) -> dict[str, Any]:
    """Evaluate an 8B with random weights 5-shot, by ``calibtune eval`` and by lm_eval's own backend."""
    return score(words, shots=5)


def score(words: list[str], shots: int | None = None) -> dict[str, Any]:
    """Evaluate an 8B with random weights, and say which share of the measured peak its passes and the whole reach."""
    import fit_speed
    import torch
    from speed_model import SHAPES, body_size, build
    from transformers import AutoConfig

    import calibtune
    from calibtune.evaluation import evaluate as evaluation

    (name,) = words
    gpu = torch.cuda.is_available()
    device, shape = torch.device("cuda" if gpu else "cpu"), "8b" if gpu else "tiny"
    SHAPES[shape] = (*SHAPES[shape][:-1], AutoConfig.from_pretrained(name).get_text_config().vocab_size)
    peak, base = fit_speed.matrix_rate(device), build(shape, "nf4" if gpu else "none", device)
    marks, tokens = [0.0] * 3, [0]

    def load(options: Any, arguments: dict[str, Any], *_: Any) -> Any:
        marks[0] = time.perf_counter()
        given = {"tokenizer": arguments["tokenizer"], "softmax_dtype": "float32"}
        model = evaluation.HF[options.backend](pretrained=base, batch_size=options.size, **given)
        inner = model._loglikelihood_tokens

        def counted(requests: list[Any], **options: Any) -> Any:
            tokens[0] = sum(map(len, {(*context, *continuation)[:-1] for _, context, continuation in requests}))
            marks[1] = time.perf_counter()
            answers = inner(requests, **options)
            marks[2] = time.perf_counter()
            return answers

        model._loglikelihood_tokens = counted
        return model

    evaluation._load = load
    found = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            calibtune.evaluate(
                name,
                tasks="mc_calib_indomain",
                apply_chat_template=True,
                device=device.type,
                num_fewshot=shots,
                limit=QUESTIONS,
                output=folder,
            )
        whole, passes = time.perf_counter() - marks[0], marks[2] - marks[1]
        tera = 2 * body_size(shape) * tokens[0] / 1e12
        shares = {"of_peak": tera / whole / peak, "passes_of_peak": tera / passes / peak}
        found.append({"seconds": whole, "passes": passes, "tokens": tokens[0], **shares})
    for module in base.modules():  # the evaluation has fused its norms
        vars(module).pop("forward", None)
    return {"peak": peak, "runs": found} | ({"stock": stock(base, name, shots)} if shots else {})


def stock(base: Any, name: str, shots: int) -> float:
    """Seconds of lm_eval with its own hf backend, from task to files."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    from calibtune.data.tasks import task_manager

    task = "mc_calib_indomain"
    model, manager = HFLM(pretrained=base, tokenizer=name, batch_size=16), task_manager([task])
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tracker = EvaluationTracker(output_path=folder)
        options = {"num_fewshot": shots, "limit": QUESTIONS, "apply_chat_template": True, "task_manager": manager}
        found = simple_evaluate(model, tasks=[task], evaluation_tracker=tracker, **options)
        samples = found.pop("samples")
        tracker.save_results_aggregated(found, samples)
        tracker.save_results_samples(task, samples[task])
        return time.perf_counter() - begun


def main() -> None:
    """Run what the first word says."""
    kind, *words = sys.argv[1:]
    found = {"fit": fit, "plain": plain, "score": score, "shots": shots}[kind](words)
    print(json.dumps({"run": kind, "words": words, **found, "wall": since()}))


if __name__ == "__main__":
    main()
