"""The paper's story on a small world whose truth is known: no download, no GPU, a few minutes on two cores.

A half-million-parameter model that learned the world's facts is well calibrated; DPO made it overconfident; the fits
of `calibtune fit` mend it more or less. Every number comes from lm_eval, on questions in the domain of the fits
(mc_calib_world) and out of it (mc_calib_world_ood), and every step prints the command that does it by hand. Commands
that do not need each other run side by side, one a core. Started again with the same --output, a killed demo goes on.

  python -m calibtune demo --output demo
  python -m calibtune demo --rebuild --output world    # pre-train and align the two models again, half an hour
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from calibtune.errors import UserError, WorkFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("calibtune-demo"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove existing files in --output")
    parser.add_argument("--rebuild", action="store_true", help="make the two shipped checkpoints again, into --output")


def go_on(args: argparse.Namespace) -> str:
    """Return what is said after Ctrl-C."""
    return "the same command goes on where it stopped"


def run(args: argparse.Namespace) -> int:
    """Evaluate and fit everything, or make the checkpoints again."""
    from calibtune.locks import held

    missing = [name for name in ("accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the demo trains models and {missing[0]} is not installed; pip install 'calibtune[train]'")
    with held(args.output):
        return _rebuild(args) if args.rebuild else _tell(args)


def _tell(args: argparse.Namespace) -> int:
    from calibtune.demo.parallel import DONE, Failed, Journal, run_all
    from calibtune.demo.story import steps, table
    from calibtune.files import refuse_existing

    if args.overwrite or not (args.output / DONE).is_file():
        refuse_existing(args.output, args.overwrite)

    started = time.monotonic()
    commands = steps(args.output)
    logs = args.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    journal = Journal(args.output)
    journal.add()
    before = sum(map(journal.done, commands))
    print(f"{len(commands)} commands; what they print goes to {logs}" + f"; {before} were done before" * bool(before))
    try:
        with contextlib.closing(run_all(commands, journal, functools.partial(_call, logs))) as begun:
            for place, command in enumerate(begun, before + 1):
                seconds = time.monotonic() - started
                print(f"[{place}/{len(commands)}, {seconds:.0f} s] {_shown(command)}", flush=True)
    except Failed as failed:
        log = _log(logs, failed.number, commands[failed.number])
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        raise WorkFailed(
            f"`{_shown(commands[failed.number])}` ended with exit code {failed.code}: {last}; all it said is in {log}"
        ) from None
    print(f"\n{table(args.output)}\n")
    print(f"{time.monotonic() - started:.0f} s; the report: {args.output / 'report' / 'report.html'}")
    return 0


def _shown(command: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "calibtune", *command])


def _log(logs: Path, number: int, command: Sequence[str]) -> Path:
    return logs / f"{number + 1:02d}-{command[0]}.txt"


def _call(logs: Path, command: list[str], number: int) -> None:
    """Run a command of ours and exit with its code; what it prints goes to its log."""
    from calibtune.__main__ import main
    from calibtune.parallel import end_with_parent

    end_with_parent()
    with _log(logs, number, command).open("a", encoding="utf-8") as file:
        print(f"$ {_shown(command)}", file=file, flush=True)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                # Operations on so small a model are over before a second thread has started.
                import torch

                torch.set_num_threads(1)
                code = main(command)
            except Exception:
                traceback.print_exc()
                code = 1
    sys.exit(code)


def _rebuild(args: argparse.Namespace) -> int:
    from calibtune.demo import ALIGNED, PRETRAINED
    from calibtune.demo.prompts import build_bank
    from calibtune.demo.train import rebuild
    from calibtune.files import refuse_existing

    refuse_existing(args.output, args.overwrite)
    pretrained, aligned = rebuild(build_bank(), args.output)
    for shipped, made in ((PRETRAINED, pretrained), (ALIGNED, aligned)):
        same = (shipped / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
        print(f"{made}: {'the same bytes as' if same else 'not the bytes of'} the shipped {shipped.name} model")
    return 0
