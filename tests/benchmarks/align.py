"""Align a model with DPO and measure what that does to its calibration (TRL's DPOTrainer; not part of the product).

Train one model; every epoch of `--keep-epochs` becomes a checkpoint, so one run gives several:

  python tests/benchmarks/align.py train --model M --data HUB --beta 0.1 --epochs 3 --output out/dpo

Measure the base, or a checkpoint, through lm_eval; then print the table of all measurements:

  python tests/benchmarks/align.py measure --model M --questions PAPER --data HUB --output results/base.json
  python tests/benchmarks/align.py measure --model M --checkpoint out/dpo/epoch-3 --questions PAPER --data HUB \
      --output results/dpo-epoch-3.json
  python tests/benchmarks/align.py table results

HUB is ../shared/data/hub (its preference pairs: 900 to train on, 100 for the win rate), PAPER ../shared/data/paper.
`align.sh` beside this file runs a whole grid on a lent GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parents[2]
PAIRS = Path("argilla/ultrafeedback-binarized-preferences")
#: Preference pairs kept from training, for the win rate.
HELD_OUT = 100
SEED = 0
TASKS = ("mc_calib_indomain", "mc_calib_arc_merged")
#: Draws of right answers for the floor.
DRAWS = 300
#: Accuracy in points that a checkpoint may lose before it counts as broken rather than overconfident.
BROKEN = 0.1
#: Bytes of one piece of a packed checkpoint; the device returns files of at most 16 MiB.
PIECE = 15 * 2**20


# Preference pairs


def split_pairs(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split the preference pairs into 900 to train on and 100 held out; no instruction is in both.

    Args:
        data: Folder of the hub mirror.

    Returns:
        Rows as the data set has them.
    """
    lines = (data / PAIRS / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    order = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))]
    held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
    taken = {row["instruction"] for row in held_out}
    return [row for row in rest if row["instruction"] not in taken], held_out


def text_pairs(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, str]]:
    """Render preference pairs as the win-rate task does: the instruction as the user's only message."""
    pairs = []
    for row in rows:
        pair = {
            name: row[column] for name, column in (("chosen", "chosen_response"), ("rejected", "rejected_response"))
        }
        if all(text.strip() for text in (row["instruction"], *pair.values())):
            messages = [{"role": "user", "content": row["instruction"].strip()}]
            pairs.append({"prompt": chat(tokenizer, messages), **pair})
    return pairs


def letter_pairs(count: int, tokenizer: Any) -> list[dict[str, str]]:
    """Render training questions as preference pairs: the right letter is chosen, a random wrong one rejected.

    The questions are of the training splits of OpenBookQA and MedMCQA, and in neither split of `mc_calib_indomain` nor
    in `mc_calib_arc_merged`: later fits and all evaluations meet none of them. The prompt is the harness task's own.
    Call it from the folder of the data mirror.
    """
    import datasets

    from harness_ext.documents import mirror_cache
    from harness_ext.prompts import LETTERS
    from harness_ext.splits import SOURCES, arc_merged, indomain, usable

    used = {
        plain(doc["question"]) for splits in (indomain(), arc_merged()) for split in splits.values() for doc in split
    }
    documents: dict[str, dict[str, Any]] = {}
    for name in ("openbookqa", "medmcqa"):
        path, configuration, _, to_document = SOURCES[name]
        rows = datasets.load_dataset(path, configuration, split="train", cache_dir=mirror_cache(path))
        documents |= {key: doc for doc in usable(rows, to_document)[0] if (key := plain(doc["question"])) not in used}
    task = harness_tasks(TASKS[:1])[0]
    rng = np.random.default_rng(SEED)
    names = sorted(documents)
    if len(names) < count:
        raise SystemExit(f"--letters {count}: the mirror has {len(names)} training questions that no task evaluates")
    pairs = []
    for i in rng.permutation(len(names))[:count]:
        doc = documents[names[i]]
        wrong = [j for j in range(len(doc["choices"])) if j != doc["gold"]]
        prompt = task.fewshot_context(
            doc, num_fewshot=0, apply_chat_template=True, chat_template=lambda messages, **_: chat(tokenizer, messages)
        )
        pairs.append(
            {"prompt": prompt, "chosen": LETTERS[doc["gold"]], "rejected": LETTERS[wrong[rng.integers(len(wrong))]]}
        )
    return pairs


def plain(question: str) -> str:
    """Return a question without differences of case and blanks."""
    return " ".join(question.lower().split())


def chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Render messages up to where the assistant begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def turn_end(tokenizer: Any) -> str:
    """Return the special token that the chat template puts after the assistant's words."""
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "THE ANSWER"}]
    end = tokenizer.apply_chat_template(messages, tokenize=False).split("THE ANSWER")[1].strip()
    if len(tokenizer(end)["input_ids"]) != 1:
        raise SystemExit(f"the chat template ends an answer with {end!r}, not with one token")
    return str(end)


def harness_tasks(names: tuple[str, ...]) -> list[Any]:
    """Load tasks of this repository as the harness does."""
    return list(task_manager().load(list(names))["tasks"].values())


def task_manager() -> Any:
    """Return the harness's task manager with this repository's tasks alone."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(REPO / "lm_eval_tasks"), include_defaults=False)


# Training


def train(args: argparse.Namespace) -> None:
    """Run DPO once and save a checkpoint after each kept epoch."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig

    started = time.time()
    gpu = torch.cuda.is_available()
    # On Hopper cuDNN's attention, torch's choice from 2.11 on, gives NaN gradients for masked batches of length 64
    # modulo 128 (pytorch/pytorch#196678, huggingface/trl#7181).
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if tokenizer("")["input_ids"]:
        raise SystemExit(f"{args.model}: its tokenizer puts a token before every text, which the template gives too")
    # TRL ends each response with this token; a GGUF's tokenizer may name another than the chat template's.
    tokenizer.eos_token = turn_end(tokenizer)
    pairs = text_pairs(split_pairs(args.data)[0][: args.pairs], tokenizer)
    sources = {"ultrafeedback": len(pairs)}
    if args.letters:
        sources["letters"] = args.letters
        os.chdir(args.questions)
        pairs += letter_pairs(args.letters, tokenizer)
    # The reference's scores are computed in this order: little is padding. Training draws its batches at random.
    pairs.sort(key=lambda pair: len(pair["prompt"]) + max(len(pair["chosen"]), len(pair["rejected"])))
    keep = sorted({int(epoch) for epoch in args.keep_epochs.split(",")}) if args.keep_epochs else [args.epochs]
    # A full run keeps float32 weights under autocast; a LoRA's frozen base needs no more than bfloat16.
    dtype = torch.bfloat16 if gpu and args.lora_rank else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    steps = -(-len(pairs) // args.batch_size)
    config = DPOConfig(
        output_dir=str(args.output / "trainer"),
        beta=args.beta,
        loss_type=[args.loss],
        learning_rate=args.learning_rate,
        # Constant after the warm-up, so that the checkpoint of epoch 1 does not depend on how many follow.
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=max(1, steps // 10),
        num_train_epochs=max(keep),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.micro_batch_size,
        gradient_accumulation_steps=args.batch_size // args.micro_batch_size,
        gradient_checkpointing=args.checkpointing,
        max_length=args.max_length,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=4 * args.micro_batch_size,
        bf16=gpu,
        use_cpu=not gpu,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
        dataloader_pin_memory=gpu,
        disable_tqdm=True,
    )

    class Save(TrainerCallback):
        """Save the model after each kept epoch; stop where training has diverged."""

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not np.isfinite(float((logs or {}).get("grad_norm", 0))):
                raise SystemExit(f"step {state.global_step}: the gradient is not finite")

        def on_epoch_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            epoch = round(state.epoch)
            if epoch in keep and abs(state.epoch - epoch) < 1e-6:
                save(trainer, args.model, args.output / f"epoch-{epoch}")

    trainer = dpo_trainer(args.batch_size)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora(args) if args.lora_rank else None,
        callbacks=[Save()],
    )
    prepared = time.time()
    trainer.train()
    if not any((args.output / f"epoch-{epoch}").exists() for epoch in keep):
        save(trainer, args.model, args.output / "last")
    manifest = {
        "beta": args.beta,
        "loss": args.loss,
        "learning_rate": args.learning_rate,
        "lora_rank": args.lora_rank,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "seed": args.seed,
        "pairs": sources,
        "pairs_used": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "seconds_to_prepare": round(prepared - started, 1),
        "seconds": round(time.time() - prepared, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if gpu else None,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "log": [
            {key: round(value, 4) for key, value in row.items() if key in LOGGED}
            for row in trainer.state.log_history
            if "loss" in row
        ],
        "versions": versions("trl", "torch", "transformers", "peft"),
    }
    (args.output / "align.json").write_text(json.dumps(manifest, indent=1))
    print(json.dumps({key: value for key, value in manifest.items() if key != "log"}), flush=True)


#: What is kept of the trainer's log.
LOGGED = ("epoch", "loss", "rewards/accuracies", "rewards/margins", "grad_norm")


def lora(args: argparse.Namespace) -> Any:
    """Configure a LoRA on all linear layers but the output head."""
    from peft import LoraConfig

    return LoraConfig(
        r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def dpo_trainer(batch_size: int) -> Any:
    """Return TRL's DPOTrainer with random batches whose pairs are sorted by length, so that little is padding."""
    import torch
    from trl import DPOTrainer

    class Batches(torch.utils.data.Sampler):
        """Draw the pairs of each optimizer step at random, then sort them by length."""

        def __init__(self, lengths: list[int], seed: int) -> None:
            self.lengths = np.array(lengths)
            self.rng = np.random.default_rng(seed)

        def __len__(self) -> int:
            return len(self.lengths)

        def __iter__(self) -> Iterator[int]:
            order = self.rng.permutation(len(self.lengths))
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                yield from batch[np.argsort(self.lengths[batch], kind="stable")].tolist()

    class Trainer(DPOTrainer):  # type: ignore[misc]
        """DPOTrainer with that sampler."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows = self.train_dataset if train_dataset is None else train_dataset
            columns = (rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"])
            lengths = [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]
            return Batches(lengths, self.args.seed)

    return Trainer


def save(trainer: Any, base: Path, folder: Path) -> None:
    """Save the adapter, or the whole model, in bfloat16: what is measured is what can be carried home."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model.save_pretrained(folder)
        file = folder / "adapter_model.safetensors"
        save_file({name: value.to(torch.bfloat16) for name, value in load_file(file).items()}, file)
    else:
        state = {name: value.detach().to("cpu", torch.bfloat16) for name, value in model.state_dict().items()}
        model.save_pretrained(folder, state_dict=state)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "dtype": "bfloat16"}, indent=1))
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)


# Measuring


def measure(args: argparse.Namespace) -> None:
    """Measure the base or one checkpoint through lm_eval and write one JSON, with the letters' scores beside it."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model

    started = time.time()
    checkpoint = args.checkpoint.resolve() if args.checkpoint else None
    output = args.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    adapter = checkpoint is not None and (checkpoint / "adapter_config.json").exists()
    gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "pretrained": str(args.model if checkpoint is None or adapter else checkpoint),
        "dtype": "bfloat16" if gpu else "float32",
        "softmax_dtype": "float32",
    }
    if adapter:
        arguments["peft"] = str(checkpoint)
    held_out = split_pairs(args.data)[1]
    os.chdir(args.questions)
    model = get_model("hf").create_from_arg_obj(
        arguments, {"batch_size": args.batch_size, "device": "cuda" if gpu else "cpu"}
    )

    def evaluated(tasks: list[str]) -> dict[str, Any]:
        return simple_evaluate(
            model=model, tasks=tasks, limit=args.limit, apply_chat_template=True, log_samples=True,
            task_manager=task_manager(), bootstrap_iters=0,
        )  # fmt: skip

    letters = evaluated(list(TASKS))
    rows = {task: scores(letters["samples"][task]) for task in TASKS}
    with tempfile.TemporaryDirectory() as folder:
        # The task reads the data set's only split: a mirror of the held-out pairs alone.
        target = Path(folder) / PAIRS / "data" / "train.jsonl"
        target.parent.mkdir(parents=True)
        target.write_text("".join(json.dumps(row) + "\n" for row in held_out), encoding="utf-8")
        target.parents[1].joinpath("README.md").write_text((args.data / PAIRS / "README.md").read_text())
        os.chdir(folder)
        # Long responses with logits over the whole vocabulary.
        model.batch_size_per_gpu = min(2, args.batch_size)
        pairs = evaluated(["ultrafeedback_winrate"])
        os.chdir(args.questions)
    training = checkpoint.parent / "align.json" if checkpoint else None
    result = {
        "name": output.stem,
        "model": args.model.name,
        "checkpoint": f"{checkpoint.parent.name}/{checkpoint.name}" if checkpoint else None,
        "training": json.loads(training.read_text()) if training and training.exists() else None,
        "tasks": {task: numbers(*rows[task]) for task in TASKS},
        "harness": {
            task: pick(letters["results"][task], ("acc", "conf_ece_10", "cw_ece_10", "nll", "letter_mass"))
            for task in TASKS
        },
        "win_rate": {
            **pick(
                pairs["results"]["ultrafeedback_winrate"],
                ("win_rate", "win_rate_low", "win_rate_high", "win_rate_avg", "ties", "cut"),
            ),
            "pairs": len(pairs["samples"]["ultrafeedback_winrate"]),
        },
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "versions": versions("lm_eval", "torch", "transformers", "peft", "datasets"),
        "seconds": round(time.time() - started, 1),
    }
    arrays = {
        f"{task}.{name}": value for task in TASKS for name, value in zip(("scores", "gold"), rows[task], strict=True)
    }
    np.savez_compressed(output.with_suffix(".npz"), **arrays)
    output.write_text(json.dumps(result, indent=1))
    print(table([result]), flush=True)


def versions(*names: str) -> dict[str, str]:
    """Return the installed version of each package."""
    return {name: importlib.metadata.version(name) for name in names}


def pick(results: dict[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    """Return some metrics of a harness result, under their plain names."""
    return {name: results[f"{name},none"] for name in names}


def scores(samples: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return letter log-likelihoods, NaN where a question has fewer letters, and the index of each right answer."""
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    values = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    table = np.full((len(values), max(map(len, values))), np.nan)
    for row, letters in zip(table, values, strict=True):
        row[: len(letters)] = letters
    return table, np.array([int(sample["target"]) for sample in samples])


def numbers(loglikelihoods: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    """Compute all numbers of one model on one task.

    Args:
        loglikelihoods: Letter log-likelihoods, shape (N, K), NaN where a question has fewer letters.
        gold: Index of the right letter, shape (N,).

    Returns:
        Floats by name; `best_t` and `nll_best_t` are fitted on these same questions, so they are the best that a
        temperature could do. `excess` is conf-ECE less its floor, `overconfidence` mean confidence less accuracy.
    """
    from scipy.optimize import minimize_scalar

    from harness_ext.calibration import accuracy, conf_ece, cw_ece, letter_log_softmax, nll, top

    log_probs = letter_log_softmax(loglikelihoods)
    probs = np.exp(log_probs)
    confidence, predicted = top(probs)
    best = minimize_scalar(
        lambda log_t: nll(letter_log_softmax(loglikelihoods, float(np.exp(log_t))), gold),
        bounds=(np.log(0.01), np.log(100)), method="bounded",
    )  # fmt: skip
    t = float(np.exp(best.x))
    scaled = np.exp(letter_log_softmax(loglikelihoods, t))
    low = floors(probs)
    acc, ece, cw = accuracy(probs, gold), conf_ece(probs, gold), cw_ece(probs, gold)
    count = probs.shape[1]
    return {
        "questions": len(gold),
        "acc": acc,
        "conf_ece_10": ece,
        "floor": low["conf_ece_10"],
        "floor_95": low["conf_ece_10_95"],
        "excess": ece - low["conf_ece_10"],
        "cw_ece_10": cw,
        "cw_floor": low["cw_ece_10"],
        "nll": nll(log_probs, gold),
        "nll_best_t": float(best.fun),
        "best_t": t,
        "conf_ece_10_best_t": conf_ece(scaled, gold),
        "mean_confidence": float(confidence.mean()),
        "overconfidence": float(confidence.mean() - acc),
        "letters_predicted": (np.bincount(predicted, minlength=count) / len(gold)).round(4).tolist(),
        "letters_right": (np.bincount(gold, minlength=count) / len(gold)).round(4).tolist(),
    }


def floors(probs: np.ndarray) -> dict[str, float]:
    """Compute the mean ECE of a perfectly calibrated model: right answers are drawn from its own probabilities."""
    from harness_ext.calibration import conf_ece, cw_ece

    rng = np.random.default_rng(SEED)
    cumulative = np.cumsum(np.nan_to_num(probs), axis=1)
    cumulative /= cumulative[:, -1:]
    last = (~np.isnan(probs)).sum(axis=1) - 1
    conf, cw = [], []
    for _ in range(DRAWS):
        drawn = np.minimum((rng.random((len(probs), 1)) >= cumulative).sum(axis=1), last)
        conf.append(conf_ece(probs, drawn))
        cw.append(cw_ece(probs, drawn))
    return {
        "conf_ece_10": float(np.mean(conf)),
        "conf_ece_10_95": float(np.quantile(conf, 0.95)),
        "cw_ece_10": float(np.mean(cw)),
    }


# Results


def table(results: list[dict[str, Any]]) -> str:
    """Render measurements as Markdown, one row a checkpoint and task."""
    lines = [
        "| checkpoint | task | accuracy % | confidence % | conf-ECE | floor | excess | cw-ECE | NLL | NLL, best T | T "
        "| predicted A B C D % | win rate |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for task, n in result["tasks"].items():
            letters = " ".join(f"{100 * share:.0f}" for share in n["letters_predicted"][:4])
            lines.append(
                f"| {result['name']} | {task.removeprefix('mc_calib_')} | {100 * n['acc']:.1f} | "
                f"{100 * n['mean_confidence']:.1f} | {n['conf_ece_10']:.3f} | {n['floor']:.3f} | {n['excess']:+.3f} | "
                f"{n['cw_ece_10']:.3f} | {n['nll']:.3f} | {n['nll_best_t']:.3f} | {n['best_t']:.2f} | {letters} | "
                f"{result['win_rate']['win_rate']:.2f} |"
            )
    return "\n".join(lines)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read all measurements, the base first, then by name."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda result: (result["checkpoint"] is not None, result["name"]))


def ranked(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort checkpoints by overconfidence, the smaller of the two tasks counting; broken ones last."""
    base = next((result for result in results if result["checkpoint"] is None), None)

    def key(result: dict[str, Any]) -> tuple[bool, float]:
        lost = [base["tasks"][task]["acc"] - result["tasks"][task]["acc"] for task in TASKS] if base else [0.0]
        return max(lost) <= BROKEN, min(result["tasks"][task]["overconfidence"] for task in TASKS)

    return sorted((result for result in results if result["checkpoint"]), key=key, reverse=True)


def pack(args: argparse.Namespace) -> None:
    """Cut one checkpoint into pieces that the device can return; without --checkpoint the one of the given rank."""
    if args.checkpoint is None:
        # Whole models are too large to come home.
        order = [result["checkpoint"] for result in ranked(read_results(args.results))]
        order = [name for name in order if (args.runs / name / "adapter_config.json").exists()]
        if len(order) < args.rank:
            raise SystemExit(f"--rank {args.rank}: {len(order)} adapters are measured")
        args.checkpoint = order[args.rank - 1]
    name = args.checkpoint.replace("/", "-")
    data = tarred(args.runs / args.checkpoint, name)
    args.output.mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(range(0, len(data), PIECE)):
        (args.output / f"{name}.tar.{i}").write_bytes(data[start : start + PIECE])
    print(f"{name}: {len(data):,} bytes; join with: cat {name}.tar.* | tar x", flush=True)


def tarred(folder: Path, name: str) -> bytes:
    """Return a tar of a folder's files under another name, with the manifest of its training."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"{name}/{file.name}")
        if (folder.parent / "align.json").exists():
            archive.add(folder.parent / "align.json", f"{name}/align.json")
    return buffer.getvalue()


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("train", help="one DPO run")
    trains.add_argument("--beta", type=float, default=0.1)
    trains.add_argument("--loss", choices=("sigmoid", "sigmoid_norm"), default="sigmoid",
                        help="DPO's, or its length-normalized form as in Tulu 3")  # fmt: skip
    trains.add_argument("--epochs", type=int, default=1)
    trains.add_argument("--keep-epochs", default="", help="epochs to save, such as 1,3,5 (default: the last)")
    trains.add_argument("--learning-rate", type=float, default=5e-5)
    trains.add_argument("--lora-rank", type=int, default=16, help="0: train all weights")
    trains.add_argument("--pairs", type=int, help="use the first N of the 900 preference pairs (default: all)")
    trains.add_argument("--letters", type=int, default=0, metavar="N", help="add N pairs of a right and a wrong letter")
    trains.add_argument("--batch-size", type=int, default=16, help="pairs of an optimizer step")
    trains.add_argument("--micro-batch-size", type=int, default=2, help="pairs of a forward pass")
    trains.add_argument("--max-length", type=int, default=1024)
    trains.add_argument("--max-steps", type=int, default=-1)
    trains.add_argument("--checkpointing", action="store_true", help="less memory, a third more work")
    trains.add_argument("--seed", type=int, default=0)
    measures = commands.add_parser("measure", help="the base, or one checkpoint, before and after")
    measures.add_argument("--checkpoint", type=Path, help="what train saved (default: measure the base)")
    measures.add_argument("--batch-size", type=int, default=8)
    measures.add_argument("--limit", type=int)
    for command in (trains, measures):
        command.add_argument("--model", type=Path, required=True)
        command.add_argument("--data", type=Path, required=True, metavar="HUB", help="mirror with the preference pairs")
        command.add_argument("--questions", type=Path, metavar="PAPER", help="mirror with the questions")
        command.add_argument("--output", type=Path, required=True)
    tables = commands.add_parser("table", help="print all measurements")
    tables.add_argument("results", type=Path)
    packs = commands.add_parser("pack", help="cut a checkpoint into pieces of 15 MiB")
    packs.add_argument("--results", type=Path)
    packs.add_argument("--runs", type=Path, required=True)
    packs.add_argument("--checkpoint", metavar="RUN/EPOCH")
    packs.add_argument("--rank", type=int, default=1)
    packs.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    for name in ("model", "data", "questions", "output"):
        if getattr(args, name, None):
            setattr(args, name, getattr(args, name).resolve())
    if args.command == "table":
        results = read_results(args.results)
        print(table(results))
        print("\nmost overconfident first:", ", ".join(result["name"] for result in ranked(results)))
        return
    if getattr(args, "questions", "unused") is None and (args.command == "measure" or args.letters):
        parser.error("--questions is needed to measure, and for --letters")
    {"train": train, "measure": measure, "pack": pack}[args.command](args)


if __name__ == "__main__":
    main()
