"""Methods against each other on one model: three seeds each, mean and spread, with and without temperature.

Every run is the command line that users type: `calibtune fit`, a temperature on top with `--artifact`, and `calibtune
eval` of that, whose two pipelines give the raw and the scaled letters from the same forward passes. Run it from the
folder of the data mirror (here ../shared/data/hub), with the repository on PYTHONPATH:

  python tests/benchmarks/tuning_table.py run --model M --output out --parallel 8 --configs "base;cft;rcft"
  python tests/benchmarks/tuning_table.py table out
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from calibtune.results.measures import harness_measures
from calibtune.results.samples import find_samples, read_samples

#: Metrics of the table and what they are multiplied by.
SHOWN = (("acc", 100), ("conf_ece_10", 1), ("cw_ece_10", 1), ("nll", 1), ("held_out_nll", 1))
#: Name in the table: flags of `calibtune fit`. None: the base model.
CONFIGS: dict[str, str | None] = {
    "base": None,
    "label-smoothing": "--method label-smoothing",
    "label-smoothing, 3 epochs": "--method label-smoothing --epochs 3",
    "label-smoothing, learning rate 5e-5": "--method label-smoothing --learning-rate 5e-5",
    "label-smoothing, learning rate 2e-5, 3 epochs": "--method label-smoothing --learning-rate 2e-5 --epochs 3",
    "cft": "--method cft",
    "cft, 3 epochs": "--method cft --epochs 3",
    "cft, learning rate 5e-5": "--method cft --learning-rate 5e-5",
    "cft, learning rate 2e-5": "--method cft --learning-rate 2e-5",
    "cft, learning rate 2e-5, 3 epochs": "--method cft --learning-rate 2e-5 --epochs 3",
    "cft in one order of options": "--method cft --no-shuffle-options",
    "rcft as in the paper": "--method rcft --lambda 1 --letter-weight sum --e-step epoch --e-step-rows train "
    "--no-shuffle-options --lora-dropout 0.05",
    "rcft": "--method rcft",
    "rcft, learning rate 5e-5": "--method rcft --learning-rate 5e-5",
    "rcft, learning rate 2e-5": "--method rcft --learning-rate 2e-5",
    "rcft, lambda 1, learning rate 2e-5": "--method rcft --lambda 1 --learning-rate 2e-5",
    "rcft, dropout 0.05": "--method rcft --lora-dropout 0.05",
    "rcft, lambda 1": "--method rcft --lambda 1",
    "rcft, E-step on training rows": "--method rcft --e-step epoch --e-step-rows train",
    "rcft, E-step of bins": "--method rcft --e-step bins",
    "rcft, E-step of bins, lambda 2": "--method rcft --e-step bins --lambda 2",
    "rcft, E-step of bins, lambda 1": "--method rcft --e-step bins --lambda 1",
    "rcft, E-step of bins, learning rate 5e-5": "--method rcft --e-step bins --learning-rate 5e-5",
    "rcft, E-step exact": "--method rcft --e-step epoch",
    "rcft, E-step exact, learning rate 5e-5": "--method rcft --e-step epoch --learning-rate 5e-5",
    "rcft, E-step exact, learning rate 2e-5": "--method rcft --e-step epoch --learning-rate 2e-5",
    "rcft, E-step cross-fitted": "--method rcft --e-step epoch --e-step-rows cross-fitted",
}


def run_one(name: str, seed: int, args: argparse.Namespace) -> None:
    """Fit, fit a temperature on top, evaluate; what is finished already is not done again."""
    folder = args.output / f"{name.replace(' ', '_')}-{seed}"
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shared = ["--model", args.model, "--tasks", args.fit_tasks, "--apply-chat-template", "--seed", str(seed)]
    shared += args.extra.split()
    steps = []
    adapter = []
    if (flags := CONFIGS[name]) is not None:
        words = flags.split()
        if words[0] == "--config":
            words[1] = str(Path(__file__).parents[2] / "calibtune" / "recipes" / words[1])
        steps.append(
            ["fit", *words, *shared, *args.train_extra.split(), "--output", str(folder / "adapter"), "--resume"]
        )
        adapter = ["--artifact", str(folder / "adapter")]
    steps.append(["fit", "--method", "temperature", *shared, *adapter, "--output", str(folder / "t"), "--resume"])
    steps.append(
        [
            "eval",
            "--artifact",
            str(folder / "t"),
            "--tasks",
            args.eval_tasks,
            "--output",
            str(folder / "eval"),
            "--batch-size",
            "64",
            *args.eval_extra.split(),
        ]
    )
    script = "import sys, json\nfrom calibtune.__main__ import main\n" + "".join(
        f"if main({step!r}): sys.exit(1)\n" for step in steps
    )
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    with (folder / "log").open("a") as log:
        code = subprocess.run([sys.executable, "-c", script], stdout=log, stderr=log, env=environment).returncode
    print(f"{name} seed {seed}: {'done' if code == 0 else f'exit code {code}, see {folder}/log'}", flush=True)
    if code == 0:
        (folder / "done").touch()


def collect(output: Path) -> list[dict]:
    """One row for each finished run, task and pipeline."""
    rows = []
    for done in sorted(output.glob("*/done")):
        name, seed = done.parent.name.replace("_", " ").rsplit("-", 1)
        adapter, t = done.parent / "adapter" / "calibtune.json", done.parent / "t" / "calibtune.json"
        manifest = json.loads((adapter if adapter.exists() else t).read_text())
        temperature = json.loads(t.read_text())["temperature"]["temperature"]
        (results,) = (done.parent / "eval").rglob("results_*.json")
        shared = {
            "config": name,
            "seed": int(seed),
            "T": temperature,
            "seconds": manifest["seconds"],
            "peak_gib": manifest["peak_memory_gib"],
            "held_out_nll": manifest["after" if adapter.exists() else "before"]["nll"],
        }
        for task, numbers in json.loads(results.read_text())["results"].items():
            for pipeline in ("none", "scaled"):
                values = {k.split(",")[0]: v for k, v in numbers.items() if k.endswith("," + pipeline)}
                rows.append({**shared, "task": task.removesuffix("_scaled"), "pipeline": pipeline, **values})
        rows += [{**shared, **values} for values in by_source(results.parent, temperature)]
    return rows


def by_source(folder: Path, temperature: float) -> Iterator[dict]:
    """The numbers of each data set that a pooled task draws from, recomputed from the samples."""
    for path in find_samples(folder):
        rows = read_samples(path)
        sources = np.array([doc.get("source", "") for doc in rows.documents])
        for source in sorted(set(sources) - {""}):
            kept = sources == source
            for pipeline, t in (("none", 1.0), ("scaled", temperature)):
                task = f"{rows.task.removesuffix('_scaled')}: {source}"
                yield {
                    "task": task,
                    "pipeline": pipeline,
                    **harness_measures(rows.log_probs[kept], rows.labels[kept], t),
                }


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = [
        "| method | task | T | seeds | accuracy % | conf-ECE | cw-ECE | NLL | held-out NLL | s | GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for config in [name for name in CONFIGS if any(row["config"] == name for row in rows)]:
        for task in dict.fromkeys(row["task"] for row in rows):
            for pipeline in ("none", "scaled"):
                group = [r for r in rows if (r["config"], r["task"], r["pipeline"]) == (config, task, pipeline)]
                if not group:
                    continue
                shown = [_spread(group, name, scale) for name, scale in SHOWN]
                t = _spread(group, "T", 1) if pipeline == "scaled" else "1"
                rest = [
                    f"{np.mean([r['seconds'] for r in group]):.0f}",
                    f"{np.mean([r['peak_gib'] or 0 for r in group]):.1f}",
                ]
                lines.append(f"| {' | '.join([config, task, t, str(len(group)), *shown, *rest])} |")
    return "\n".join(lines)


def _spread(group: list[dict], name: str, scale: float) -> str:
    values = np.array([row[name] for row in group]) * scale
    digits = 1 if scale == 100 else 3
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) if len(values) > 1 else 0:.{digits}f}"


def main() -> None:
    """Run or collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--model", required=True)
    run.add_argument("--output", type=Path, required=True)
    run.add_argument("--parallel", type=int, default=1)
    run.add_argument("--seeds", default="0,1,2")
    run.add_argument("--configs", default=";".join(CONFIGS), help="names, separated by semicolons")
    run.add_argument("--fit-tasks", default="mc_calib_indomain")
    run.add_argument("--eval-tasks", default="mc_calib_indomain,mc_calib_arc_merged,mc_calib_arc")
    run.add_argument("--extra", default="", help="further flags of every fit")
    run.add_argument("--train-extra", default="", help="further flags of fits that train")
    run.add_argument("--eval-extra", default="", help="further flags of every evaluation")
    commands.add_parser("table").add_argument("output", type=Path)
    args = parser.parse_args()
    if args.command == "run":
        args.output = args.output.resolve()
        jobs = [(name, int(seed)) for name in args.configs.split(";") for seed in args.seeds.split(",")]
        with ThreadPoolExecutor(args.parallel) as pool:
            list(pool.map(lambda job: run_one(*job, args), jobs))
    rows = collect(args.output)
    (args.output / "rows.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
