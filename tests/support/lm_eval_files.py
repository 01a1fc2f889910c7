"""Results and samples files in lm_eval 0.4.13's layout, made up: what the report and rescore read, without a model."""

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def answers(rows=400, letters=4, sharpness=1.0, seed=0, noise=0.0, ragged=False):
    """Log-likelihoods and right letters: labels are drawn from softmax(truth), the model says `sharpness` of it.

    The truth depends on the seed alone, so that two models of one seed answer the same questions.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.6, (rows, letters))
    count = np.where(np.arange(rows) % 5 == 0, letters - 1, letters) if ragged else np.full(rows, letters)
    truth[np.arange(letters) >= count[:, None]] = -np.inf
    probs = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    shares = probs.cumsum(axis=1)
    gold = (shares / shares[:, -1:] <= rng.random(rows)[:, None]).sum(axis=1)
    said = sharpness * (truth + noise * np.random.default_rng(seed + 1).normal(size=truth.shape))
    said = said - np.log(np.exp(said).sum(axis=1, keepdims=True)) - 0.05
    return [row[:k].tolist() for row, k in zip(said, count, strict=True)], gold.tolist()


def log_softmax(row, temperature=1.0):
    scaled = [value / temperature for value in row]
    top = max(scaled)
    total = math.log(sum(math.exp(value - top) for value in scaled))
    return [value - top - total for value in scaled]


def true_probabilities(rows=400, letters=4, seed=0):
    """The distribution from which `answers` of this seed draws the right letters."""
    truth = np.random.default_rng(seed).normal(0, 1.6, (rows, letters))
    return (np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)).tolist()


def sample_lines(task, loglikelihoods, gold, p_star=None, *, filters):
    """The lines of a samples file; `filters` maps a filter's name to its temperature, None for a stock task's."""
    for name, temperature in filters.items():
        for number, (row, right) in enumerate(zip(loglikelihoods, gold, strict=True)):
            doc = {
                "question": f"{task.removesuffix('_scaled')} question {number}?",
                "choices": [f"option {i}" for i in range(len(row))],
                "gold": right,
                **({"p_star": p_star[number]} if p_star else {}),
            }
            if temperature is None:
                filtered = [[str(value), "False"] for value in row]
            else:
                logs = log_softmax(row, temperature)
                filtered = [[str(math.exp(x)), str(x), str(raw)] for x, raw in zip(logs, row, strict=True)]
            yield {
                "doc_id": number,
                "doc": doc,
                "target": str(right),
                "arguments": {
                    f"gen_args_{i}": {"arg_0": doc["question"], "arg_1": f" {LETTERS[i]}"} for i in range(len(row))
                },
                "resps": [[[str(value), "False"]] for value in row],
                "filtered_resps": filtered,
                "filter": name,
                "metrics": ["acc"],
                "doc_hash": hashlib.sha256(json.dumps(doc).encode()).hexdigest(),
                "prompt_hash": "0",
                "target_hash": "0",
                "acc": float(row.index(max(row)) == right),
            }


def write_run(
    folder: Path,
    tasks,
    model_args=None,
    date="2026-01-02T03-04-05.678901",
    filters=None,
    groups=None,
    samples=True,
    others=None,
    **record,
):
    """Write one evaluation's files as lm_eval does and return the folder that they lie in.

    `tasks` maps names to `answers(...)`; `others` maps names of further tasks to (output_type, sample lines, results).
    """
    model_args = {"pretrained": "org/base-7b"} if model_args is None else model_args
    filters = {"none": 1.0} if filters is None else filters
    name = model_args.get("peft") or model_args.get("pretrained") if isinstance(model_args, dict) else model_args
    target = folder / re.sub(r"[\"<>:/|\\?*\[\]]+", "__", str(name))
    target.mkdir(parents=True, exist_ok=True)
    lines = {task: list(sample_lines(task, *each, filters=filters)) for task, each in tasks.items()}
    kinds = dict.fromkeys(tasks, "multiple_choice")
    results = {task: {"alias": task, "sample_len": len(each[1])} for task, each in tasks.items()}
    for task, (kind, other, numbers) in (others or {}).items():
        lines[task], kinds[task], results[task] = other, kind, {"alias": task, **numbers}
    sizes = {task: len({line["doc_id"] for line in each}) for task, each in lines.items()}
    whole = {
        "results": results,
        "group_subtasks": groups or {},
        "configs": {task: {"task": task, "output_type": kind} for task, kind in kinds.items()},
        "n-shot": dict.fromkeys(lines, 0),
        "n-samples": {task: {"original": size, "effective": size} for task, size in sizes.items()},
        "config": {"model": "hf", "model_args": model_args},
        "model_name": name,
        **record,
    }
    (target / f"results_{date}.json").write_text(json.dumps(whole))
    if samples:
        for task, each in lines.items():
            path = target / f"samples_{task}_{date}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in each))
    return target


def win_lines(rows=200, rate=0.7, seed=0):
    """Samples of `ultrafeedback_winrate` and its results."""
    wins = np.random.default_rng(seed).random(rows) < rate
    lines = [
        {
            "doc_id": number,
            "doc": {"instruction": f"do {number}"},
            "target": "0",
            "resps": [[["-10.0", "False", "7", "False"]], [["-12.0", "False", "9", "False"]]],
            "filtered_resps": [["-10.0", "False", "7", "False"], ["-12.0", "False", "9", "False"]],
            "filter": "none",
            "doc_hash": f"pair {number}",
            "win_rate": float(win),
            "win_rate_avg": float(not win),
        }
        for number, win in enumerate(wins)
    ]
    share = float(wins.mean())
    numbers = {"sample_len": rows, "ties,none": 0.0, "cut,none": 0.01}
    for metric, value in (("win_rate", share), ("win_rate_avg", 1 - share)):
        numbers |= {f"{metric},none": value, f"{metric}_low,none": value - 0.06, f"{metric}_high,none": value + 0.06}
    return "multiple_choice", lines, numbers
