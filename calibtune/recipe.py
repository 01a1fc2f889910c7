"""Describe a fit: one dataclass, read from a YAML recipe and overridden by flags."""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter
from pydantic_core import from_json

from calibtune.errors import UserError
from calibtune.reading import read_yaml
from calibtune.spec import ModelSpec, Precision, Quantization, QuestionSpec
from harness_ext.binning import MOST_BINS

#: The methods that train weights, and those that take the options of training.
TRAINS = ("label-smoothing", "cft", "rcft")
TRAINED = " ".join((*TRAINS, "auto"))
#: Options of a model that is loaded here, or of answers that are at hand.
NOT_SERVED = (
    "artifact",
    "samples",
    "orders",
    "revision",
    "chat_template",
    "add_bos_token",
    "trust_remote_code",
    "quantization",
    "precision",
    "device",
)
#: No layer of a model of today gains by a higher rank, and memory grows with it.
MOST_RANK = 4096
#: Each takes as long as a fit.
MOST_ADAPTERS = 64
#: Passes over the training questions where none are given: held-out NLL was lowest after as many.
EPOCHS = {"label-smoothing": 2.0, "cft": 2.0, "rcft": 3.0}
#: The recipes that ship with calibtune.
RECIPES = Path(__file__).parent / "recipes"


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _mapping(value: Any) -> Any:
    return from_json(value) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Options = Annotated[dict[str, JsonValue], BeforeValidator(_mapping)]


def _option(default: Any, text: str, group: str = "basic", only: str = "", **limits: Any) -> Any:
    """Make a field: its help text, its group in ``--help``, the methods that it is for (all where empty), its range."""
    metadata = {"help": text, "group": group, "only": only.split(), "limits": limits}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """Describe one fit. The defaults had the lowest held-out NLL over three seeds (docs/recipes.md).

    A recipe checks itself: unknown values, values out of range and options of another method raise
    :class:`~calibtune.errors.UserError`, with all mistakes at once.

    Example:
        >>> Recipe(method="cft").epochs
        2.0
    """

    method: Literal["temperature", "label-smoothing", "cft", "rcft", "strength", "auto"] = _option("", "what to fit")
    model: str = _option("", "base model, or an adapter below a temperature: hub id or folder")
    tasks: Names = _option((), "harness tasks to fit on, separated by commas")
    apply_chat_template: bool = _option(False, "render prompts with the tokenizer's chat template")
    held_out: int = _option(500, "questions kept from training: for T, the held-out E-step and validation", ge=0)
    limit: Annotated[int, Ge(1)] | None = _option(None, "use at most this many training questions")
    seed: int = _option(
        0, "seed of the held-out draw, the order of questions and options, and the adapter", ge=0, le=2**32 - 1
    )
    split_seed: Annotated[int, Ge(0)] | None = _option(
        None, "seed of the held-out draw alone, so that fits of several seeds hold out the same questions", "method"
    )
    epochs: Annotated[float, Gt(0)] | None = _option(
        None, "passes over the training questions (default: 3; cft and label-smoothing: 2)", only=TRAINED
    )
    learning_rate: float = _option(1e-4, "peak learning rate of AdamW, cosine schedule", only=TRAINED, gt=0)
    batch_size: int = _option(16, "questions in a forward pass, per process", ge=1)
    report_to: Literal["none", "tensorboard", "wandb"] = _option("none", "where curves go", only=TRAINED)
    artifact: str | None = _option(
        None, "fit the temperature on top of this PEFT adapter, or its strength", only="temperature strength"
    )
    samples: str | None = _option(None, "fit from this samples file of lm_eval, without a model", only="temperature")
    backend: Literal["hf", "api"] = _option(
        "hf", "api: ask an OpenAI-compatible server for the letters, without weights", only="temperature"
    )
    base_url: str | None = _option(
        None, "of --backend api: the server's address, which ends in /v1 (default: OpenAI's)", only="temperature"
    )
    include_path: str | None = _option(None, "folder of further task YAMLs, as lm_eval's --include_path")
    data: str | None = _option(
        None, "file (JSONL, CSV, Parquet) or data set with questions to fit on, beside or in place of --tasks"
    )
    columns: str = _option("", "its columns, as question=NAME,choices=NAME[,NAME...],answer=NAME")
    skip_bad_rows: bool = _option(False, "leave out rows of --data that cannot be used, instead of stopping")
    as_letters: bool = _option(False, "ask the harness's tasks with our prompt and letters")
    revision: str | None = _option(None, "branch, tag or commit of the model on the hub")
    chat_template: str | None = _option(None, "file of a Jinja chat template, for a tokenizer that has none")
    chat_template_args: Options = _option({}, "further arguments of the chat template, as JSON")
    add_bos_token: bool | None = _option(
        None, "begin prompts with the tokenizer's beginning-of-text token (default: as the tokenizer does)"
    )
    trust_remote_code: bool = _option(False, "run code that comes with the model")

    objective: Literal["nll", "ece"] = _option("nll", "what T minimizes", "method", "temperature")
    orders: Annotated[int, Ge(1)] | Literal["all"] = _option(
        1,
        "ask each held-out question in N cyclic orders of its options, or in all, and fit T on the mean probabilities",
        "method",
        "temperature",
    )
    adapters: int = _option(
        4, "adapters that are trained, RCFT and CFT by turns, and averaged", "method", "auto", ge=1, le=MOST_ADAPTERS
    )
    with_temperature: bool = _option(
        False, "choose the strength for an adapter that gets a temperature afterwards", "method", "strength"
    )
    smoothing: float = _option(
        0.1, "epsilon: probability shared by the wrong letters", "method", "label-smoothing", ge=0, lt=1
    )
    shuffle_options: bool = _option(True, "re-order the options at random in each epoch", "method", TRAINED)
    tuning: Literal["lora", "full"] = _option("lora", "train an adapter, or all weights", "method", TRAINED)
    rank: int = _option(128, "rank of the adapter", "method", TRAINED, ge=1, le=MOST_RANK)
    lora_alpha: float = _option(64, "the adapter is scaled by alpha / rank", "method", TRAINED, gt=0)
    lora_dropout: float = _option(
        0.0, "dropout before the adapter (paper: 0.05); costs time and memory", "method", TRAINED, ge=0, lt=1
    )
    target_modules: Names = _option(
        ("all-linear",), "layers that get an adapter, by PEFT's names, separated by commas", "method", TRAINED
    )
    gradient_accumulation: int = _option(1, "forward passes in a step", "method", TRAINED, ge=1)
    max_steps: int = _option(-1, "stop after this many steps; -1: by epochs", "method", TRAINED)
    warmup_ratio: float = _option(0.1, "share of the steps spent warming up", "method", TRAINED, ge=0, lt=1)
    weight_decay: float = _option(0.0, "AdamW's weight decay", "method", TRAINED, ge=0)
    max_grad_norm: float = _option(
        1.0, "gradient norm above which gradients are scaled down; 0: never", "method", TRAINED, ge=0
    )
    save_every: int = _option(0, "steps between checkpoints; 0: at each epoch's end", "method", TRAINED, ge=0)
    training_arguments: Options = _option(
        {}, "further arguments of transformers.TrainingArguments, as JSON", "method", TRAINED
    )

    lambda_: float = _option(4.0, "lambda, the weight of L_ECE (paper: 1)", "RCFT", "rcft", ge=0)
    letter_weight: Annotated[float, Ge(0)] | Literal["token-mean", "sum"] = _option(
        1.0,
        "the letter's weight in L_SFT2: a number, against the mean over question tokens; token-mean: one token among "
        "them (most libraries); sum: all summed (the paper as written)",
        "RCFT",
        "rcft",
    )
    sft: bool = _option(True, "L_SFT2 beside L_ECE; off: L_ECE alone", "RCFT", "rcft")
    bins: int = _option(
        10, "M, the bins of the E-step, or of the ECE that T minimizes", "RCFT", "rcft temperature", ge=1, le=MOST_BINS
    )
    e_step: Literal["running", "epoch"] = _option(
        "running",
        "scores that an epoch's targets are made of. running: those of the last epoch's training passes; epoch: new "
        "ones, by the present model, before each epoch (the paper)",
        "RCFT",
        "rcft",
    )
    e_step_rows: Literal["train", "held-out"] = _option(
        "held-out", "whose accuracy the bins take: training questions (the paper) or held-out ones", "RCFT", "rcft"
    )
    mapping: Literal["simplified", "general"] = _option(
        "simplified", "target mapping, paper Eqs 9-11 or 12-13", "RCFT", "rcft"
    )
    calibration_loss: Literal["mse", "cross-entropy"] = _option("mse", "distance in L_ECE", "RCFT", "rcft")

    quantization: Quantization = _option("none", "hold the base model in 4-bit NF4 (QLoRA)", "hardware")
    precision: Precision = _option(
        "auto",
        "of the base model and forward pass; auto: bf16 on an accelerator that has it, else fp32",
        "hardware",
    )
    device: str | None = _option(None, "cuda, cpu, mps; found by itself where not given", "hardware")
    auto_batch: bool = _option(False, "halve the batch and accumulate where memory runs out", "hardware", TRAINED)
    gradient_checkpointing: bool = _option(False, "recompute activations: less memory, more time", "hardware", TRAINED)
    liger_kernel: bool | None = _option(
        None,
        "Liger's kernels for norms, rotary embedding and MLP: faster, less memory, on a GPU (default: where installed, "
        "for Llama, Mistral, OLMo 2, Qwen2 and Qwen3)",
        "hardware",
        TRAINED,
    )
    cuda_graphs: bool | None = _option(
        None,
        "launch a forward and backward pass as one where that is faster, on a GPU (default: for the models above, in "
        "one process without checkpointing)",
        "hardware",
        TRAINED,
    )

    def __post_init__(self) -> None:
        """Convert the values to their types, fill in the method's epochs, and refuse what cannot be used."""
        values, problems = check({name: getattr(self, name) for name in FIELDS})
        if problems:
            raise UserError(_listed([text for _, text in problems]))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def trains(self) -> bool:
        """Return whether the method trains weights."""
        return self.method in TRAINS

    @property
    def draw_seed(self) -> int:
        """Return the seed of the held-out draw."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def spec(self) -> ModelSpec:
        """Return the base model."""
        names = {item.name for item in dataclasses.fields(ModelSpec)} - {"name"}
        return ModelSpec(name=self.model, **{name: getattr(self, name) for name in names})

    @property
    def questions(self) -> QuestionSpec:
        """Return where the questions come from."""
        return QuestionSpec(**{item.name: getattr(self, item.name) for item in dataclasses.fields(QuestionSpec)})


FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}


def flag(name: str) -> str:
    """Return an option's flag: ``--lambda`` for ``lambda_``, ``--e-step-rows`` for ``e_step_rows``."""
    return "--" + name.rstrip("_").replace("_", "-")


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, as JSON gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()}


@cache
def types() -> dict[str, Any]:
    """Return each option's type; they are read once, since Python evaluates the text of each every time."""
    return typing.get_type_hints(Recipe)


def is_switch(name: str) -> bool:
    """Return whether an option is on or off."""
    hint = types()[name]
    return hint is bool or bool in typing.get_args(hint)


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML recipe's keys, not yet checked.

    Args:
        path: A file, or the name of a packaged recipe such as ``paper/rcft``. A chat template may lie beside it.

    Raises:
        UserError: No such file, not a YAML mapping, or one key twice.
    """
    packaged = RECIPES / path.with_suffix(".yaml")
    path = packaged if not path.exists() and packaged.is_file() else path
    known = ", ".join(str(file.relative_to(RECIPES).with_suffix("")) for file in sorted(RECIPES.rglob("*.yaml")))
    try:
        values = read_yaml(path, f"give a file of one `key: value` a line, or a packaged recipe: {known}")
    except UserError as error:
        raise UserError(f"--config {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds {type(values).__name__}; give one `key: value` a line")
    # The reader sees a key that is given twice, but `lambda` and `lambda_` are one too.
    keys = [flag(str(key))[2:] for key in values]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--config {path} gives {twice!r} twice; keep one of them")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    if isinstance(template := values.get("chat_template"), str) and os.path.isfile(path.parent / template):
        values["chat_template"] = str(path.parent / template)
    return values


def make_recipe(
    config: Mapping[str, Any], flags: Mapping[str, Any], source: str = "--config", problems: Collection[str] = ()
) -> Recipe:
    """Merge a recipe file with flags, and check that it can be run.

    Args:
        config: Keys of the recipe file.
        flags: What was given on the command line; wins.
        source: The recipe file's name, for messages.
        problems: Mistakes that were found before.

    Returns:
        The recipe.

    Raises:
        UserError: With every mistake at once, one a line.
    """
    names = {flag(name)[2:].replace("-", "_"): name for name in FIELDS}
    errors, values, source_of = [*problems], dict[str, Any](), dict[str, str]()
    for given, place in ((config, f"{source}: "), (flags, "")):
        for key, value in given.items():
            name = names.get(key, key)
            if name in FIELDS:
                values[name], source_of[name] = value, place
                continue
            close = difflib.get_close_matches(key, names, 1)
            errors.append(f"{place}unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    _, wrong = check(values)
    errors += [source_of.get(name, "") + text for name, text in wrong]
    errors += missing(values, {name for name, _ in wrong})
    if errors:
        raise UserError(_listed(errors))
    return Recipe(**values)


def missing(values: Mapping[str, Any], wrong: Collection[str] = ()) -> list[str]:
    """Say what a fit still needs: a method, and a model and tasks, or a samples file, or an adapter.

    Args:
        values: Options by name.
        wrong: Those that were given and cannot be used.
    """
    needed = ["method"] if values.get("samples") else ["method", "model", "tasks"]
    if values.get("method") == "strength":
        needed = ["artifact"]  # which names its model and tasks
    if values.get("artifact") and "model" in needed:
        needed.remove("model")  # the adapter names its base
    if values.get("data") and "tasks" in needed:
        needed.remove("tasks")
    return [f"{flag(name)} is missing" for name in needed if not values.get(name) and name not in wrong]


def check(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Convert options to their types and look for mistakes.

    Args:
        values: Options by name; those left out have their defaults.

    Returns:
        All options, converted; and the mistakes, each with the option that it is about.
    """
    defaults = {name: item.default if item.default is not dataclasses.MISSING else {} for name, item in FIELDS.items()}
    converted, problems = dict(defaults), []
    for name, value in values.items():
        if name == "method" and not value:
            continue  # which is missing, not wrong
        try:
            if isinstance(value, bool) and not is_switch(name):
                raise ValueError  # Python counts True as 1
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            converted[name] = _adapters()[name].validate_python(value)
        except ValueError:  # pydantic's errors are of this kind
            problems.append((name, f"{flag(name)} is {value!r:.80}; give {_wanted(name)}"))
    problems += _together(SimpleNamespace(**converted), [name for name in values if converted[name] != defaults[name]])
    if converted["epochs"] is None:
        converted["epochs"] = EPOCHS.get(converted["method"])
    return converted, problems


def recorded(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a recipe that was written as JSON, each option of its type; what it lacks had its default.

    Raises:
        UserError: An option has another type; the message names it.
    """
    found = recipe_values(Recipe())
    for name, value in values.items():
        if name in FIELDS and value != found[name]:
            try:
                _adapters()[name].validate_python(value)
            except ValueError:
                raise UserError(f"{where}: {name} is {value!r:.80}; fit again with --overwrite") from None
            found[name] = value
    return found


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = typing.get_type_hints(Recipe, include_extras=True)
    config = ConfigDict(allow_inf_nan=False)
    limited = {name: Annotated[hints[name], Field(**item.metadata["limits"])] for name, item in FIELDS.items()}
    return {name: TypeAdapter(hint, config=config) for name, hint in limited.items()}  # type: ignore[arg-type]


def _wanted(name: str) -> str:
    """Say in words what an option takes.

    Example:
        >>> _wanted("rank"), _wanted("letter_weight")
        ('a whole number from 1 to 4096', 'a number from 0 up or token-mean or sum')
    """
    schema = _adapters()[name].json_schema()
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "array": "names separated by commas",
        "object": "a JSON object",
    }
    wanted: list[str] = []
    for part in schema.get("anyOf", [schema]):
        if "enum" in part or "const" in part:
            wanted += part.get("enum") or [part["const"]]
        elif part["type"] != "null":
            wanted.append(words[part["type"]] + _range(part))
    return " or ".join(wanted)


def _range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
    if high is not None:
        return f" from {low} to {high}" if "maximum" in schema else f" from {low} to below {high}"
    above = schema.get("exclusiveMinimum")
    return f" from {low} up" if low is not None else f" above {above}" if above is not None else ""


def _listed(problems: Collection[str]) -> str:
    problems = list(problems)
    return "\n  ".join(["the recipe cannot be used:", *problems]) if len(problems) > 1 else problems[0]


def _together(recipe: Any, given: Collection[str]) -> list[tuple[str, str]]:
    """Find options that do not go together; ``given`` names those that are not their defaults."""
    wrong = []
    for name, item in FIELDS.items():
        only = item.metadata["only"]
        if recipe.method and only and recipe.method not in only and name in given:
            cure = "; to train on from an adapter, merge it into its base first" if name == "artifact" else ""
            wrong.append((name, f"{flag(name)} is for --method {' or '.join(only)}, not {recipe.method}{cure}"))
    if recipe.samples and recipe.artifact:
        wrong.append(
            ("samples", "--samples holds answers already, so no adapter is asked; leave out --samples or --artifact")
        )
    if recipe.base_url and recipe.backend != "api":
        wrong.append(("base_url", "--base-url is for --backend api; give it, or leave out --base-url"))
    if recipe.backend == "api":
        asked = f"--backend api asks {recipe.base_url or 'a server'}, to which it does not apply; leave it out"
        wrong += [(name, f"{flag(name)}: {asked}") for name in NOT_SERVED if name in given]
    if recipe.max_steps < 1 and recipe.max_steps != -1:
        wrong.append(("max_steps", f"--max-steps is {recipe.max_steps}; give -1 or a number above 0"))
    if recipe.device and recipe.device.partition(":")[0] == "meta":
        wrong.append(("device", f"--device is {recipe.device!r}; give cuda, cpu or mps, where numbers are held"))
    if recipe.method == "rcft" and not recipe.sft and recipe.lambda_ == 0:
        wrong.append(("lambda_", "--lambda 0 with --no-sft leaves nothing to train on"))
    if recipe.tuning == "full" and recipe.quantization != "none":
        wrong.append(("quantization", "--quantization nf4 cannot be trained in full; use --tuning lora"))
    if recipe.method == "auto" and recipe.tuning == "full":
        wrong.append(("tuning", "--tuning full: --method auto averages adapters; leave it out"))
    if recipe.cuda_graphs and recipe.gradient_checkpointing:
        wrong.append(("cuda_graphs", "--cuda-graphs cannot be used with --gradient-checkpointing; leave one out"))
    if recipe.held_out == 0 and recipe.method in ("temperature", "auto"):
        wrong.append(("held_out", "--held-out is 0; a temperature needs held-out questions to be fitted on"))
    if recipe.held_out == 0 and recipe.method == "rcft" and recipe.e_step_rows == "held-out":
        wrong.append(("held_out", "--held-out is 0; the E-step needs held-out questions, or --e-step-rows train"))
    return wrong
