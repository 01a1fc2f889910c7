"""Everything that ``calibtune fit`` can be told: one dataclass, read from a recipe and overridden by flags."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from calibtune.errors import UserError
from harness_ext.binning import MOST_BINS

METHODS = ("temperature", "label-smoothing", "cft", "rcft")
#: No layer of a model of today gains by a higher rank, and memory grows with it.
MOST_RANK = 4096


def _option(default: Any, text: str, only: str = "") -> Any:
    """A field with its help text, and the methods (separated by blanks) that it is for, all where empty."""
    return field(default=default, metadata={"help": text, "only": only.split()})


@dataclass(frozen=True)
class Recipe:
    """One fit. The defaults are what measured best on held-out NLL over three seeds (``recipes/README.md``)."""

    method: Literal["temperature", "label-smoothing", "cft", "rcft"] = _option("", "what to fit")
    model: str = _option("", "base model: hub id or folder")
    tasks: tuple[str, ...] = _option((), "harness tasks to fit on, separated by commas")
    artifact: str | None = _option(None, "fit the temperature on top of this adapter", "temperature")
    samples: str | None = _option(None, "fit from this samples file of lm_eval, without a model", "temperature")
    apply_chat_template: bool = _option(False, "render prompts with the tokenizer's chat template")
    chat_template: str | None = _option(None, "file of a Jinja chat template, for a tokenizer that has none")
    include_path: str | None = _option(None, "folder of further task YAMLs, as lm_eval's --include_path")
    limit: int | None = _option(None, "use at most this many training questions")
    held_out: int = _option(500, "questions kept from training: for T, the held-out E-step and validation")
    seed: int = _option(0, "seed of the held-out draw, the order of questions and options, and the adapter")

    objective: Literal["nll", "ece"] = _option("nll", "what T minimizes", "temperature")
    smoothing: float = _option(0.1, "epsilon: probability shared by the wrong letters", "label-smoothing")
    lambda_: float = _option(4.0, "lambda, the weight of L_ECE (paper: 1)", "rcft")
    sft: bool = _option(True, "L_SFT2 beside L_ECE; off: L_ECE alone", "rcft")
    letter_weight: float | Literal["token-mean", "sum"] = _option(
        1.0,
        "the letter's weight in L_SFT2: a number, against the mean over question tokens; token-mean: one token among "
        "them (most libraries); sum: all summed (the paper as written)",
        "rcft",
    )
    bins: int = _option(10, "M, the bins of the E-step, or of the ECE that T minimizes", "rcft temperature")
    mapping: Literal["simplified", "general"] = _option("simplified", "target mapping, paper Eqs 9-11 or 12-13", "rcft")
    calibration_loss: Literal["mse", "cross-entropy"] = _option("mse", "distance in L_ECE", "rcft")
    e_step: Literal["running", "epoch"] = _option(
        "running",
        "scores that an epoch's targets are made of. running: those of the last epoch's training passes; epoch: new "
        "ones, by the present model, before each epoch (the paper)",
        "rcft",
    )
    e_step_rows: Literal["train", "held-out"] = _option(
        "held-out", "whose accuracy the bins take: training questions (the paper) or held-out ones", "rcft"
    )
    shuffle_options: bool = _option(True, "re-order the options at random in each epoch", "label-smoothing cft rcft")

    epochs: float = _option(
        3, "passes over the training questions; cft and label-smoothing take 2", "label-smoothing cft rcft"
    )
    max_steps: int = _option(-1, "stop after this many steps; -1: by epochs", "label-smoothing cft rcft")
    batch_size: int = _option(16, "questions in a forward pass, per process")
    gradient_accumulation: int = _option(1, "forward passes in a step", "label-smoothing cft rcft")
    learning_rate: float = _option(1e-4, "peak learning rate of AdamW, cosine schedule", "label-smoothing cft rcft")
    warmup_ratio: float = _option(0.1, "share of the steps spent warming up", "label-smoothing cft rcft")
    weight_decay: float = _option(0.0, "AdamW's weight decay", "label-smoothing cft rcft")
    max_grad_norm: float = _option(
        1.0, "gradient norm above which gradients are scaled down", "label-smoothing cft rcft"
    )
    tuning: Literal["lora", "full"] = _option("lora", "train an adapter, or all weights", "label-smoothing cft rcft")
    quantization: Literal["none", "nf4"] = _option("none", "hold the base model in 4-bit NF4 (QLoRA)")
    precision: Literal["bf16", "fp32"] = _option("bf16", "precision of the base model and of the forward pass")
    rank: int = _option(128, "rank of the adapter", "label-smoothing cft rcft")
    lora_alpha: float = _option(64, "the adapter is scaled by alpha / rank", "label-smoothing cft rcft")
    lora_dropout: float = _option(
        0.0, "dropout before the adapter (paper: 0.05); costs time and memory", "label-smoothing cft rcft"
    )
    gradient_checkpointing: bool = _option(
        False, "recompute activations: less memory, more time", "label-smoothing cft rcft"
    )
    liger_kernel: bool = _option(
        False, "Liger's kernels for norms, rotary embedding and MLP: faster and less memory, on a GPU",
        "label-smoothing cft rcft"
    )  # fmt: skip
    cuda_graphs: bool = _option(
        False, "launch each forward and backward pass as one: for small models on a GPU", "label-smoothing cft rcft"
    )
    auto_batch: bool = _option(
        False, "halve the batch and accumulate where memory runs out", "label-smoothing cft rcft"
    )
    save_every: int = _option(0, "steps between checkpoints; 0: at each epoch's end", "label-smoothing cft rcft")
    report_to: str = _option("none", "tensorboard, wandb or none", "label-smoothing cft rcft")
    device: str | None = _option(None, "cuda, cpu, mps; found by itself where not given")
    trust_remote_code: bool = _option(False, "run code that comes with the model")


#: Where a method's own default is another than the field's: these are past their lowest held-out NLL after two epochs.
OWN_DEFAULTS: dict[str, dict[str, Any]] = {"cft": {"epochs": 2}, "label-smoothing": {"epochs": 2}}

FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}
_TYPES = typing.get_type_hints(Recipe)


def flag(name: str) -> str:
    """A field's flag: ``--lambda`` for ``lambda_``, ``--e-step-rows`` for ``e_step_rows``."""
    return "--" + name.rstrip("_").replace("_", "-")


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML recipe's keys, not yet checked; a chat template may lie beside it.

    Raises:
        UserError: No such file, not a YAML mapping, or one key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}; recipes lie in {RECIPES}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    # A date that is none is a ValueError of YAML's.
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"--config {path} holds {type(values).__name__}; give one `key: value` a line")
    # Of a key given twice YAML keeps the last, silently; `lambda` and `lambda_` are one too.
    keys = [flag(str(key.value))[2:] for key, _ in node.value]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--config {path} gives {twice!r} twice; keep one of them")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    if isinstance(template := values.get("chat_template"), str) and (path.parent / template).is_file():
        values["chat_template"] = str(path.parent / template)
    return values


#: The recipes that ship with calibtune.
RECIPES = Path(__file__).parent / "recipes"


def make_recipe(
    config: Mapping[str, Any], flags: Mapping[str, Any], source: str = "--config", problems: Collection[str] = ()
) -> Recipe:
    """Merge a recipe with flags and check all of it.

    Args:
        config: Keys of the recipe file.
        flags: What was given on the command line; wins.
        source: The recipe file's name, for messages.
        problems: Mistakes that were found before.

    Returns:
        The recipe.

    Raises:
        UserError: With every mistake at once, one a line: unknown keys, values of a wrong kind or out of range,
            options of another method.
    """
    names = {flag(name)[2:].replace("-", "_"): name for name in FIELDS}
    errors, values, unusable = [*problems], {}, set()
    for given, where in ((config, source), (flags, "the command line")):
        for key, value in given.items():
            name = names.get(key, key)
            if name not in FIELDS:
                close = difflib.get_close_matches(key, names, 1)
                errors.append(f"{where}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
                continue
            converted, problem = _convert(name, value)
            if problem:
                unusable.add(name)
                errors.append(f"{where}: {flag(name)[2:]} is {value!r}; give {problem}")
            else:
                values[name] = converted
    recipe = dataclasses.replace(Recipe(), **(OWN_DEFAULTS.get(values.get("method", ""), {}) | values))
    errors += _problems(recipe, values, unusable)
    if errors:
        raise UserError("\n  ".join(["the recipe cannot be used:", *errors]) if len(errors) > 1 else errors[0])
    return recipe


def _convert(name: str, value: Any) -> tuple[Any, str]:
    """The value as the field's type, and what to give instead where it is none."""
    kind = _TYPES[name]
    if name == "tasks":
        tasks = value.split(",") if isinstance(value, str) else value
        good = isinstance(tasks, (list, tuple)) and all(isinstance(task, str) for task in tasks)
        return (tuple(task.strip() for task in tasks if task.strip()), "") if good else (None, "task names")
    options = typing.get_args(kind) if typing.get_origin(kind) is not None else (kind,)
    choices: list[Any] = []
    for option in options:
        if typing.get_origin(option) is Literal:
            choices += typing.get_args(option)
        elif isinstance(option, str):
            choices.append(option)
        elif option is type(None) and value is None:
            return None, ""
        elif option in (int, float, str, bool) and (made := _scalar(option, value)) is not None:
            return made, ""
    if value in choices:
        return value, ""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    wanted = [str(choice) for choice in choices] + [names[o] for o in options if isinstance(o, type) and o in names]
    return None, " or ".join(wanted)


def _scalar(kind: type, value: Any) -> Any:
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is str:
        return value if isinstance(value, str) else None
    try:
        number = float(value)  # YAML 1.1 reads 1e-4 as text
    except (TypeError, ValueError, OverflowError):
        return None
    if kind is int:
        return int(number) if number.is_integer() else None
    return number


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "smoothing": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "lambda_": (lambda x: 0 <= x < math.inf, "a number from 0 up"),
    "letter_weight": (lambda x: isinstance(x, str) or 0 <= x < math.inf, "a number from 0 up"),
    "bins": (lambda x: 1 <= x <= MOST_BINS, f"a number from 1 to {MOST_BINS}"),
    "seed": (lambda x: 0 <= x < 2**32, "a number from 0 to 4294967295"),
    "epochs": (lambda x: 0 < x < math.inf, "a number above 0"),
    "max_steps": (lambda x: x == -1 or x > 0, "-1 or a number above 0"),
    "batch_size": (lambda x: x >= 1, "at least 1"),
    "gradient_accumulation": (lambda x: x >= 1, "at least 1"),
    "learning_rate": (lambda x: 0 < x < math.inf, "a number above 0"),
    "warmup_ratio": (lambda x: 0 <= x < 1, "a share in [0, 1)"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "a number from 0 up"),
    "max_grad_norm": (lambda x: x >= 0, "a number from 0 up (0: gradients stay as they are)"),
    "rank": (lambda x: 1 <= x <= MOST_RANK, f"a number from 1 to {MOST_RANK}"),
    "lora_alpha": (lambda x: 0 < x < math.inf, "a number above 0"),
    "lora_dropout": (lambda x: 0 <= x < 1, "a share in [0, 1)"),
    "limit": (lambda x: x is None or x >= 1, "at least 1"),
    "held_out": (lambda x: x >= 0, "0 or more"),
    "save_every": (lambda x: x >= 0, "0 or more"),
    "report_to": (lambda x: x in ("none", "tensorboard", "wandb"), "tensorboard, wandb or none"),
    "device": (lambda x: x is None or x.partition(":")[0] != "meta", "cuda, cpu or mps, where numbers are held"),
}


def _problems(recipe: Recipe, given: Mapping[str, Any], unusable: Collection[str]) -> list[str]:
    needed = ("method",) if recipe.samples else ("method", "model", "tasks")
    missing = [name for name in needed if not getattr(recipe, name) and name not in unusable]
    errors = [f"{flag(name)} is missing" for name in missing]
    for name, (good, wanted) in _RANGES.items():
        if not good(getattr(recipe, name)):
            errors.append(f"{flag(name)} is {getattr(recipe, name)!r}; give {wanted}")
    for name in given:
        only = FIELDS[name].metadata["only"]
        if recipe.method and only and recipe.method not in only:
            errors.append(f"{flag(name)} is for --method {' or '.join(only)}, not {recipe.method}")
    if recipe.samples and recipe.artifact:
        errors.append("--samples holds answers already, so no adapter is asked; leave out --samples or --artifact")
    if recipe.method == "rcft" and not recipe.sft and recipe.lambda_ == 0:
        errors.append("--lambda 0 with --no-sft leaves nothing to train on")
    if recipe.tuning == "full" and recipe.quantization != "none":
        errors.append("--quantization nf4 cannot be trained in full; use --tuning lora")
    if recipe.cuda_graphs and (recipe.gradient_checkpointing or recipe.lora_dropout > 0):
        errors.append("--cuda-graphs needs --lora-dropout 0 and no --gradient-checkpointing")
    if recipe.method == "temperature" and recipe.held_out == 0:
        errors.append("--held-out is 0; a temperature needs held-out questions to be fitted on")
    if recipe.method == "rcft" and recipe.e_step_rows == "held-out" and recipe.held_out == 0:
        errors.append("--held-out is 0; the E-step needs held-out questions, or --e-step-rows train")
    return errors
