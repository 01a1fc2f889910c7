"""Artifacts of many epochs, lambdas and methods on the demo's world, for the plane of accuracy against calibration.

Each is an ordinary fit of the demo's aligned model, evaluated in and out of its domain. `mc_calib_world_learned` asks
the questions that the fits were trained on again: there, and there alone, a model can have more accuracy than acc*.

  python tests/benchmarks/regime_world.py run world        # about an hour on one core; goes on where it stopped
  python tests/benchmarks/regime_world.py summary world    # what docs/data/results.json holds, as JSON
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks

from calibtune.demo import ALIGNED, IN_DOMAIN, OUT_DOMAIN, PRETRAINED
from calibtune.demo.story import TRAINING

LEARNED = "mc_calib_world_learned"
COMMON = ("--apply-chat-template", "--precision", "fp32")
#: Few questions for many epochs, so that their answers are learned by heart.
BY_HEART = ("--limit", "488", "--epochs", "40")
#: Name of each fit and its flags, after those of the demo; later flags win.
FITS: dict[str, tuple[str, ...]] = {
    "temperature": ("--method", "temperature"),
    "label-smoothing": ("--method", "label-smoothing", *TRAINING),
    **{f"cft-{n}-epochs": ("--method", "cft", *TRAINING, "--epochs", n) for n in ("1", "3", "10")},
    **{f"rcft-{n}-epochs": ("--method", "rcft", *TRAINING, "--epochs", n) for n in ("1", "3", "10")},
    **{f"rcft-lambda-{v}": ("--method", "rcft", *TRAINING, "--lambda", v) for v in ("0", "0.4", "1", "1.8", "20")},
    "rcft-l-ece-alone": ("--method", "rcft", *TRAINING, "--no-sft"),
    "cft-by-heart": ("--method", "cft", *TRAINING, *BY_HEART),
    "rcft-by-heart": ("--method", "rcft", *TRAINING, *BY_HEART),
}


def run(output: Path) -> None:
    """Run what is not there yet: fits, evaluations on the test questions, and on those that were trained on."""
    evaluate(output, "pretrained", "--model", str(PRETRAINED))
    evaluate(output, "aligned", "--model", str(ALIGNED))
    learned(output, "aligned", None)
    for name, flags in FITS.items():
        folder = output / "fits" / name
        if not (folder / "calibtune.json").is_file():
            words = ["fit", "--model", str(ALIGNED), "--tasks", IN_DOMAIN, *COMMON, *flags, "--output", str(folder)]
            call("-m", "calibtune", *words, "--overwrite")
        evaluate(output, name, "--artifact", str(folder))
        if flags[1] != "temperature":
            learned(output, name, folder)


def evaluate(output: Path, name: str, *model: str) -> None:
    """Evaluate in and out of the domain."""
    folder = output / "evaluations" / name
    if not list(folder.rglob("results_*.json")):
        words = ["eval", *model, "--tasks", f"{IN_DOMAIN},{OUT_DOMAIN}", *COMMON, "--batch-size", "128"]
        call("-m", "calibtune", *words, "--output", str(folder))


def learned(output: Path, name: str, adapter: Path | None) -> None:
    """Ask the training questions through lm_eval; `calibtune eval` refuses what an artifact was fitted on."""
    folder = output / "learned" / name
    if list(folder.rglob("results_*.json")):
        return
    tasks = output / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    include = Path(lm_eval.tasks.__file__).parent / "mc_calib" / "mc_calib_world.yaml"
    (tasks / "learned.yaml").write_text(f"include: {include}\ntask: {LEARNED}\ntest_split: train\n")
    model = f"pretrained={ALIGNED},dtype=float32" + (f",peft={adapter}" if adapter else "")
    words = ["--model", "hf", "--model_args", model, "--include_path", str(tasks), "--tasks", LEARNED]
    words += ["--device", "cpu", "--batch_size", "128", "--apply_chat_template", "--log_samples"]
    call("-m", "lm_eval", *words, "--output_path", str(folder))


def call(*words: str) -> None:
    """Run a command and stop where it fails."""
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    run(parser.parse_args().output)
