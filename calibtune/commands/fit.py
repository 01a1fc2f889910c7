"""Mend a model's calibration: fit a temperature, or train an adapter.

The methods, with an example each:

  temperature      one number T that divides the letters' log-likelihoods; seconds; keeps accuracy as it is
      python -m calibtune fit --method temperature --model M --tasks mc_calib_indomain --output runs/t
      python -m calibtune fit --method temperature --samples out/samples_X.jsonl --output runs/t
      python -m calibtune fit --method temperature --backend api --base-url http://localhost:8000/v1 --model NAME ...
  label-smoothing  train on the letters, epsilon of the probability shared by the wrong ones
      python -m calibtune fit --method label-smoothing --model M --tasks mc_calib_indomain --output runs/ls
  cft              calibration-aware fine-tuning: train on the right letter (arXiv 2505.01997)
      python -m calibtune fit --method cft --model M --tasks mc_calib_indomain --output runs/cft
  rcft             its regularized form: question tokens too, and lambda times the calibration error, by EM
      python -m calibtune fit --method rcft --model M --tasks mc_calib_indomain --output runs/rcft
  auto             the mean of adapters that RCFT and CFT trained by turns, with a temperature on top; takes as
                   long as --adapters fits
      python -m calibtune fit --method auto --model M --tasks mc_calib_indomain --output runs/auto
  strength         one number in [0, 1] that scales what a trained adapter adds to its base, by held-out NLL
      python -m calibtune fit --method strength --artifact runs/cft --output runs/weaker

Chat models: add --apply-chat-template. What is made is evaluated with `python -m calibtune eval --artifact DIR`, or
with lm_eval alone: --model_args pretrained=M,peft=runs/rcft. A temperature goes on top of an adapter with --artifact.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import typing
from pathlib import Path
from typing import Any

from calibtune.processes import is_first_process
from calibtune.recipe import FIELDS, RECIPES, flag, is_switch, load_recipe, make_recipe, types
from calibtune.text import visible

logger = logging.getLogger(__name__)

#: Groups of options in ``--help``, in this order.
GROUPS = {"basic": "basic", "method": "method", "RCFT": "RCFT", "hardware": "hardware and memory"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the run, and one for each field of the recipe, in groups."""
    parser.usage = "%(prog)s --method METHOD --model MODEL --tasks T[,T] --output DIR [options]"
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    basic = groups["basic"]
    for name in ("method", "model", "tasks"):
        _add_field(basic, name)
    basic.add_argument("--output", type=Path, metavar="DIR", help="the artifact's folder")
    basic.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML recipe, or a packaged one such as paper/rcft; flags win"
    )
    basic.add_argument("--resume", action="store_true", help="go on where a killed fit stopped; same command otherwise")
    basic.add_argument("--overwrite", action="store_true", help="remove what lies in --output")
    basic.add_argument("--json", action="store_true", help="print the artifact's manifest as JSON at the end")
    for name, item in FIELDS.items():
        if name not in ("method", "model", "tasks"):
            _add_field(groups[item.metadata["group"]], name)


def go_on(args: argparse.Namespace) -> str:
    """Return what is said after Ctrl-C: --resume where there is something to resume."""
    from calibtune.artifacts.manifest import MANIFEST, STARTED
    from calibtune.models.served import REPLIES
    from calibtune.tuning.checkpoints import CHECKPOINTS, WHOLE

    if args.output is None or not (args.output / STARTED).is_file():
        return "run the same command again"
    if (args.output / REPLIES).is_file():
        return "the same command with --resume asks for the replies that are missing"
    if not any(path for name in (WHOLE, MANIFEST) for path in (args.output / CHECKPOINTS).rglob(name)):
        return "no checkpoint was written yet; the same command with --resume begins anew"
    return "the same command with --resume goes on from the last checkpoint"


def _add_field(group: argparse._ArgumentGroup, name: str) -> None:
    item = FIELDS[name]
    only = " ".join(item.metadata["only"])
    text = item.metadata["help"] + (f" [{only}]" if only else "") + _default(item.default)
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if is_switch(name):
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, **options)
    else:
        group.add_argument(flag(name), metavar=_metavar(name), **options)


def _default(value: Any) -> str:
    shown = ",".join(value) if isinstance(value, tuple) else value
    hidden = value in ("", None, ()) or isinstance(value, bool) or value is dataclasses.MISSING
    return "" if hidden else f" (default: {shown})"


def _metavar(name: str) -> str:
    """Return the choices of a field, read from its type, or its name."""
    kinds = typing.get_args(types()[name])
    choices = [c for kind in kinds for c in (typing.get_args(kind) or (kind,)) if isinstance(c, str)]
    return "{" + ",".join(choices) + "}" if choices else name.rstrip("_").upper()


def _left_to_the_user(config: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Return what a recipe file, which may be someone else's, asks for and only the command line may."""
    asked = [name for name in ("include_path", "trust_remote_code") if config.get(name) and not hasattr(args, name)]
    problems = [
        f"{args.config}: {name} is {config[name]!r:.80}, which runs code; if you trust it, give {flag(name)} on the "
        "command line"
        for name in asked
    ]
    training = config.get("training_arguments")
    for name in training if isinstance(training, dict) else ():
        if str(name).startswith(("push_to_hub", "hub_")):
            problems.append(f"{args.config}: training_arguments: {name} uploads; give it on the command line")
    if args.overwrite and args.output is None and config.get("output"):
        problems.append(f"--overwrite removes files, so --output is given with it, not by {args.config}")
    return problems


def run(args: argparse.Namespace) -> int:
    """Fit, and say what came out and what to do with it."""
    flags = {name: value for name, value in vars(args).items() if name in FIELDS}
    if not flags and args.config is None:
        print(__doc__)
        print("Packaged recipes, for --config:")
        for path in sorted(RECIPES.rglob("*.yaml")):
            print(f"  {path.relative_to(RECIPES).with_suffix('')}")
        print("\nAll options: python -m calibtune fit --help")
        return 0
    config = load_recipe(args.config) if args.config else {}
    left = _left_to_the_user(config, args)
    given = config.pop("output", None)
    output = args.output or given
    problems = ["--output is missing"] if output is None else []
    if output is not None and not isinstance(output, (str, Path)):
        problems = [f"{args.config}: output is {output!r}; give a folder as text"]
    problems += left
    recipe = make_recipe(config, flags, str(args.config or "--config"), problems)
    args.output = Path(output)
    if is_first_process():
        what = recipe.samples or f"{', '.join(recipe.questions.names)}, {recipe.model or recipe.artifact}"
        logger.info("fit: %s on %s; starting", recipe.method, visible(what))
    from calibtune.api import fit
    from calibtune.artifacts.card import summary

    artifact = fit(recipe, args.output, resume=args.resume, overwrite=args.overwrite)
    if is_first_process():
        text = json.dumps(artifact.record()) if args.json else summary(artifact, args.output)
        print(text, file=args.stdout)
    return 0
