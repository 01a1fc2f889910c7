"""Read and check a fit's input before weights are loaded."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from calibtune.artifacts.manifest import Artifact, base_model, read_artifact, tokenizer_folder
from calibtune.data.encoder import Encoder
from calibtune.data.examples import Examples, in_orders, load_examples
from calibtune.data.source import load_questions
from calibtune.data.tokens import PAD, TokenExample, tokenize
from calibtune.data.training_set import Questions, TrainingSet
from calibtune.errors import UserError
from calibtune.models.adapters import check_adapter, embedding_rows
from calibtune.models.fingerprint import check_fingerprint
from calibtune.models.loading import context_length, load_config, load_tokenizer
from calibtune.recipe import Recipe
from calibtune.tuning.checks import check_machine, check_trainable, with_kernels
from harness_ext.orders import count_of
from harness_ext.task import OrderedTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Hold a fit's tokenizer, questions and other input."""

    recipe: Recipe
    tokenizer: Any
    encoder: Encoder
    examples: Examples
    #: Where a temperature is fitted in several orders of the options, the orders of each question in a row.
    held_out: tuple[TokenExample, ...]
    max_length: int
    revision: str | None
    #: What a temperature is fitted on top of.
    adapter: Artifact | None

    @property
    def gold(self) -> np.ndarray:
        """Return the index of the right letter of each held-out question, shape (N,)."""
        return np.array([example.gold for example in self.examples.held_out], dtype=np.int64)

    @cached_property
    def questions(self) -> Questions:
        """Return the tokenized training and held-out questions."""
        recipe = self.recipe
        data = TrainingSet(self.examples.train, self.encoder, self.max_length, recipe.seed, recipe.shuffle_options)
        return Questions(data, self.held_out, PAD)


def read_inputs(recipe: Recipe) -> Inputs:
    """Read tokenizer, tasks and questions, and check them against each other.

    Raises:
        UserError: The input is wrong; see the functions called.
    """
    check_machine(recipe)
    config = load_config(recipe.spec)
    recipe = with_kernels(recipe, config)
    check_trainable(recipe, config)
    adapter = fitted_adapter(recipe)
    folder = tokenizer_folder(adapter)
    spec = recipe.spec if folder is None else dataclasses.replace(recipe.spec, name=str(folder), revision=None)
    tokenizer = load_tokenizer(spec)
    encoder = Encoder(tokenizer, recipe.spec)
    _, tasks = load_questions(recipe.questions)
    check_one_order(tasks)
    examples = load_examples(
        tasks,
        encoder,
        recipe.apply_chat_template,
        recipe.held_out,
        recipe.draw_seed,
        recipe.limit,
        None if adapter is None else adapter.seen("train"),
        1.0 if recipe.method == "temperature" else 0.25,
    )
    if recipe.method == "strength" and adapter is not None:
        examples = held_out_again(examples, adapter)
    if recipe.trains and recipe.max_steps > 0:
        # What no step reaches needs no tokens and no score, and the artifact has not seen it.
        examples = dataclasses.replace(examples, train=examples.train[: recipe.max_steps * step_size(recipe)])
    length = context_length(config, tokenizer)
    asked = [shown for example in examples.held_out for shown in in_orders(example, recipe.orders)]
    held_out = tuple(tokenize(asked, encoder, length))
    revision = getattr(config, "_commit_hash", None)
    inputs = Inputs(recipe, tokenizer, encoder, examples, held_out, length, revision, adapter)
    check_counts(inputs)
    rows = (*held_out, *inputs.questions.train.rows) if recipe.trains else held_out
    added = embedding_rows(Path(adapter)) if adapter is not None and adapter.foreign else None
    check_vocabulary(rows, added or config.get_text_config().vocab_size, recipe.model)
    return inputs


def check_one_order(tasks: Sequence[Any]) -> None:
    """Refuse to fit on tasks that ask in several orders, which --orders says.

    Raises:
        UserError: With the task.
    """
    for task in tasks:
        if isinstance(task, OrderedTask):
            raise UserError(
                f"--tasks {task.task_name} asks in {count_of(task.orders)}; give the task that asks in one, and for a "
                f"temperature --orders {task.orders}"
            )


def fitted_adapter(recipe: Recipe) -> Artifact | None:
    """Return the adapter on top of which a temperature is fitted, or None.

    Raises:
        UserError: ``--artifact`` is not an adapter, or was trained on another base model.
    """
    if recipe.artifact is None:
        return None
    artifact = read_artifact(Path(recipe.artifact))
    if artifact.kind != "adapter":
        raise UserError(f"--artifact {recipe.artifact} is a {artifact.kind}; give an adapter, or its base as --model")
    check_adapter(Path(recipe.artifact))
    base_model(recipe.model, artifact)
    check_fingerprint(recipe.spec, artifact.fingerprint, recipe.artifact)
    return artifact


def held_out_again(examples: Examples, adapter: Artifact) -> Examples:
    """Return the questions that an adapter's fit held out, and no others.

    Raises:
        UserError: None of them is found.
    """
    seen, known = adapter.seen("held_out"), len(adapter.documents["held_out"])
    held_out = tuple(each for each in examples.held_out if seen.same(each.prompts.task, each.doc, each.question))
    if not held_out:
        raise UserError(
            f"none of the {known} questions that {adapter.folder} held out is found in its tasks; have the data as "
            "they were for that fit"
        )
    if len(held_out) < known:
        logger.warning("%d of the %d questions that %s held out are found", len(held_out), known, adapter.folder)
    return dataclasses.replace(examples, held_out=held_out)


def check_counts(inputs: Inputs) -> None:
    """Check that a fit has enough questions.

    Raises:
        UserError: The method needs held-out questions and there are none, or there are fewer
            training questions than a step takes.
    """
    recipe, tasks = inputs.recipe, ", ".join(inputs.recipe.questions.names)
    if not inputs.held_out and recipe.method == "temperature":
        raise UserError(f"no question of {tasks} is left to fit T on; raise --limit, or use a task with more rows")
    if not inputs.held_out and recipe.method == "rcft" and recipe.e_step_rows == "held-out" and recipe.lambda_ > 0:
        raise UserError(
            f"no question of {tasks} is left for the E-step; raise --limit, use a task with more rows, or give "
            "--e-step-rows train"
        )
    if not recipe.trains or recipe.auto_batch:
        return
    step = step_size(recipe)
    if (count := len(inputs.examples.train)) < step:
        raise UserError(
            f"a step takes {step} questions (batch size x accumulation x processes), but there are only {count} to "
            "train on; lower --batch-size or --gradient-accumulation"
        )


def step_size(recipe: Recipe) -> int:
    """Return the number of questions that a step takes in all processes."""
    return recipe.batch_size * recipe.gradient_accumulation * int(os.environ.get("WORLD_SIZE", "1"))


def check_vocabulary(rows: Sequence[TokenExample], size: int, model: str) -> None:
    """Check that the model's vocabulary has all tokens of the questions.

    Raises:
        UserError: A token id is too large; the message gives the largest.
    """
    largest = max((token for row in rows for token in (*row.input_ids, *row.letter_ids)), default=0)
    if largest >= size:
        raise UserError(
            f"--model {model} has a tokenizer that gives token {largest}, but the vocabulary has {size} tokens; give a "
            "folder in which model and tokenizer belong together"
        )
