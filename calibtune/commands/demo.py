"""The paper's story on a small world whose truth is known: no download, no GPU, a few minutes on two cores.

A half-million-parameter model that learned the world's facts is well calibrated; DPO made it overconfident; the fits
of `calibtune fit` mend it more or less. Every number comes from lm_eval, on questions in the domain of the fits
(mc_calib_world) and out of it (mc_calib_world_ood), and every step prints the command that does it by hand.

  python -m calibtune demo --output demo
  python -m calibtune demo --rebuild --output world    # pre-train and align the two models again, half an hour
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from calibtune.errors import UserError, WorkFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("calibtune-demo"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove what lies in --output")
    parser.add_argument("--rebuild", action="store_true", help="make the two shipped checkpoints again, into --output")


def run(args: argparse.Namespace) -> int:
    """Evaluate and fit everything, or make the checkpoints again."""
    from calibtune.files import refuse_existing

    missing = [name for name in ("accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the demo trains models and {missing[0]} is not installed; pip install 'calibtune[train]'")
    refuse_existing(args.output, args.overwrite)
    if args.rebuild:
        return _rebuild(args.output)
    import torch

    from calibtune.demo.story import steps, table

    # Operations on so small a model are over before a second thread has started, and waiting for it takes longer.
    torch.set_num_threads(1)
    started = time.monotonic()
    commands = steps(args.output)
    log = args.output / "log.txt"
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"{len(commands)} commands; what they print goes to {log}")
    for number, command in enumerate(commands, start=1):
        print(f"[{number}/{len(commands)}, {time.monotonic() - started:.0f} s] {_shown(command)}", flush=True)
        _call(command, log)
    print(f"\n{table(args.output)}\n")
    print(f"{time.monotonic() - started:.0f} s; the report: {args.output / 'report' / 'report.html'}")
    return 0


def _shown(command: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "calibtune", *command])


def _call(command: Sequence[str], log: Path) -> None:
    """Run a command of ours in this process, which saves the half-minute of a new one's imports."""
    from calibtune.__main__ import main

    with log.open("a", encoding="utf-8") as file:
        print(f"\n$ {_shown(command)}", file=file, flush=True)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = main(list(command))
    if code == 130:
        raise KeyboardInterrupt
    if code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        raise WorkFailed(f"`{_shown(command)}` ended with exit code {code}: {last}; all it said is in {log}")


def _rebuild(output: Path) -> int:
    from calibtune.demo import ALIGNED, PRETRAINED
    from calibtune.demo.prompts import build_bank
    from calibtune.demo.train import rebuild

    pretrained, aligned = rebuild(build_bank(), output)
    for shipped, made in ((PRETRAINED, pretrained), (ALIGNED, aligned)):
        same = (shipped / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
        print(f"{made}: {'the same bytes as' if same else 'not the bytes of'} the shipped {shipped.name} model")
    return 0
