"""Artifacts of many epochs, lambdas and methods on the demo's world, for the plane of accuracy against calibration.

Each is an ordinary fit of the demo's aligned model, evaluated in and out of its domain. Two more learn 240 questions by
heart, and are asked these again: there, and there alone, a model can have more accuracy than acc*. Goes on where it
stopped.

  python tests/benchmarks/regime_world.py world
  python -m calibtune regime world --output pages/test
  python -m calibtune regime world/learned --output pages/learned
  python tests/benchmarks/regime_world.py pages/test     # rows for docs/data/results.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks

from calibtune.demo import ALIGNED, IN_DOMAIN, OUT_DOMAIN, PRETRAINED
from calibtune.demo.story import TRAINING
from calibtune.reading import read_json

#: The task of few questions, and the same questions asked again.
FEW, LEARNED = "mc_calib_world_few", "mc_calib_world_learned"
COMMON = ("--apply-chat-template", "--precision", "fp32")
#: Name of each fit and its flags, after those of the demo; later flags win.
FITS: dict[str, tuple[str, ...]] = {
    "temperature": ("--method", "temperature"),
    "label-smoothing": ("--method", "label-smoothing", *TRAINING),
    **{f"cft-{n}-epochs": ("--method", "cft", *TRAINING, "--epochs", n) for n in ("1", "3", "10")},
    **{f"rcft-{n}-epochs": ("--method", "rcft", *TRAINING, "--epochs", n) for n in ("1", "3")},
    **{f"rcft-lambda-{v}": ("--method", "rcft", *TRAINING, "--lambda", v) for v in ("0", "1", "0.4", "1.8")},
    "rcft-l-ece-alone": ("--method", "rcft", *TRAINING, "--no-sft"),
}
BY_HEART = {
    f"cft-by-heart-{n}-epochs": ("--method", "cft", *TRAINING, "--epochs", n, "--held-out", "0") for n in ("15", "60")
}
TASKS = f"""\
include: {Path(lm_eval.tasks.__file__).parent / "mc_calib" / "mc_calib_world.yaml"}
task: {FEW}
custom_dataset: !function few.few
"""
FEW_PY = """\
import datasets

from harness_ext.world.questions import in_domain, out_domain


def few(**_):
    # A fit leaves out questions about the facts that the test split asks about.
    return datasets.DatasetDict(train=in_domain()["train"].select(range(240)), test=out_domain()["test"])
"""


def run(output: Path) -> None:
    """Run what is not there yet: fits, and evaluations on the test questions or on those learned by heart."""
    tasks = output / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    (tasks / "few.py").write_text(FEW_PY)
    (tasks / f"{FEW}.yaml").write_text(TASKS)
    (tasks / f"{LEARNED}.yaml").write_text(TASKS.replace(FEW, LEARNED) + "test_split: train\n")
    evaluate(output, "pretrained", "--model", str(PRETRAINED))
    evaluate(output, "aligned", "--model", str(ALIGNED))
    learned(output, "aligned", None)
    for name, flags in BY_HEART.items():
        learned(output, name, fit(output, name, FEW, *flags, "--include-path", str(tasks)))
    for name, flags in FITS.items():
        evaluate(output, name, "--artifact", str(fit(output, name, IN_DOMAIN, *flags)))


def fit(output: Path, name: str, task: str, *flags: str) -> Path:
    """Fit the aligned model and return the artifact's folder."""
    folder = output / "fits" / name
    if not (folder / "calibtune.json").is_file():
        words = ["fit", "--model", str(ALIGNED), "--tasks", task, *COMMON, *flags, "--output", str(folder), "--resume"]
        call("-m", "calibtune", *words)
    return folder


def evaluate(output: Path, name: str, *model: str) -> None:
    """Evaluate in and out of the domain."""
    folder = output / "evaluations" / name
    if not list(folder.rglob("results_*.json")):
        words = ["eval", *model, "--tasks", f"{IN_DOMAIN},{OUT_DOMAIN}", *COMMON, "--batch-size", "128"]
        call("-m", "calibtune", *words, "--output", str(folder))


def learned(output: Path, name: str, adapter: Path | None) -> None:
    """Ask the few questions through lm_eval; `calibtune eval` refuses what an artifact was fitted on."""
    folder = output / "learned" / name
    if not list(folder.rglob("results_*.json")):
        model = f"pretrained={ALIGNED},dtype=float32" + (f",peft={adapter}" if adapter else "")
        words = ["--model", "hf", "--model_args", model, "--include_path", str(output / "tasks"), "--tasks", LEARNED]
        words += ["--device", "cpu", "--batch_size", "128", "--apply_chat_template", "--log_samples"]
        call("-m", "lm_eval", *words, "--output_path", str(folder))


def call(*words: str) -> None:
    """Run a command and stop where it fails."""
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True)


def rows(page: Path) -> list[dict[str, Any]]:
    """Return the rows of docs/data/results.json from the numbers of a page."""
    found = []
    for task, each in read_json(page / "regime.json")["tasks"].items():
        for label, model in each["models"].items():
            theory, numbers = model["theory"], model["numbers"]
            values = {
                "accuracy": numbers["acc"],
                "conf_ece": numbers["conf_ece_10"],
                "tce": theory["tce"]["estimate"],
                "above": theory["above"]["estimate"],
                **{name: theory[name] for name in ("c", "lower", "upper", "cw_ece")},
                "conf_ece_expected": theory["conf_ece"],
                "lacks": theory["acc_star"] - theory["acc"],
                "expected": theory["acc"],
                "tce_by_letter": theory["tce"]["estimate"] / theory["letters"],
                "sure": model["spread"]["sure"],
            }
            rounded = {name: None if value is None else round(value, 4) for name, value in values.items()}
            found.append({"model": label, "task": task, "regime": model["regime"], **rounded})
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of all that is made; or a page's, whose rows are printed")
    output = parser.parse_args().output
    if (output / "regime.json").is_file():
        print(json.dumps(rows(output), indent=1))
    else:
        run(output)
