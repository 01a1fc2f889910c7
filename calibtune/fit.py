"""One fit from recipe to artefact: read the questions, load the model, train or search T, measure, write."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibtune.artefact import MANIFEST, Artefact, read_artefact, recipe_values, versions
from calibtune.epochs import overtrained
from calibtune.errors import UserError, WorkFailed, is_out_of_memory
from calibtune.estep import score
from calibtune.examples import Encoder, Examples, LetterExample, document_hash, load_examples, load_tasks
from calibtune.files import read_json, refuse_existing, write_json
from calibtune.measures import harness_measures
from calibtune.modeling import (
    add_adapter,
    check_installed,
    check_kernels,
    context_length,
    idle_gpus,
    load_adapter,
    load_base,
    load_config,
    load_tokenizer,
)
from calibtune.recipe import Recipe
from calibtune.tokens import TokenExample, tokenise
from harness_ext.binning import FloatArray, IntArray
from harness_ext.prompts import doc_to_text

#: The recipe of an unfinished fit, which --resume checks; and its checkpoints.
STARTED, CHECKPOINTS = "started.json", "checkpoints"
#: A disk with fewer free bytes is full.
FULL = 2**16


@dataclass(frozen=True)
class Inputs:
    """Everything that a fit reads before it loads weights."""

    recipe: Recipe
    tokenizer: Any
    encoder: Encoder
    examples: Examples
    held_out: tuple[TokenExample, ...]
    max_length: int
    revision: str | None

    @property
    def gold(self) -> np.ndarray:
        """Right letters of the held-out questions, shape (N,)."""
        return np.array([example.gold for example in self.held_out], dtype=np.int64)


def read_inputs(recipe: Recipe) -> Inputs:
    """Tokenizer, tasks and questions, checked against each other.

    Raises:
        UserError: Whatever is wrong with them; see the functions called.
    """
    check_installed(recipe)
    config = load_config(recipe)
    check_kernels(recipe, config)
    tokenizer = load_tokenizer(recipe)
    encoder = Encoder(tokenizer)
    tasks = load_tasks(recipe.tasks, recipe.include_path)
    examples = load_examples(
        tasks, encoder, recipe.apply_chat_template, recipe.held_out, recipe.seed, recipe.limit, trained_on(recipe)
    )
    length = context_length(config, tokenizer)
    held_out = tuple(tokenise(examples.held_out, encoder, length))
    return Inputs(recipe, tokenizer, encoder, examples, held_out, length, getattr(config, "_commit_hash", None))


def trained_on(recipe: Recipe) -> frozenset[str]:
    """Hashes of the documents that the recipe's adapter, if it has one, was trained on."""
    if recipe.artifact is None:
        return frozenset()
    return frozenset(read_artefact(Path(recipe.artifact)).documents["train"])


def fit(recipe: Recipe, output: Path, resume: bool = False, overwrite: bool = False) -> Artefact:
    """Run a fit.

    Args:
        recipe: What to do.
        output: The artefact's folder.
        resume: Go on from the last whole checkpoint there.
        overwrite: Remove what lies there.

    Returns:
        The finished artefact.

    Raises:
        UserError: Bad input, before anything is loaded where it can be known.
        WorkFailed: Out of memory, a loss that is not finite, a full disk.
    """
    if resume and (output / MANIFEST).is_file():
        return read_artefact(output)
    # Bad input must neither remove what --overwrite is for nor leave a folder behind: it is taken once all is read.
    if is_first_process() and not overwrite and not (resume and (output / STARTED).is_file()):
        refuse_existing(output, overwrite)
    if recipe.samples is not None:
        return fit_samples(recipe, output, resume, overwrite)
    inputs = read_inputs(recipe)
    if is_first_process():
        _claim(recipe, output, resume, overwrite)
        _announce(inputs)
    try:
        return _temperature(inputs, output) if recipe.method == "temperature" else _train(inputs, output, resume)
    except Exception as error:
        if is_out_of_memory(error):
            raise WorkFailed(_memory_advice(recipe)) from error
        # Each library has its own error for it: OSError, SafetensorError, RuntimeError of torch.save.
        if shutil.disk_usage(output).free < FULL or "No space left" in str(error):
            raise WorkFailed(
                f"no space is left on the disk of {output}; free some and run the same command with --resume"
            ) from error
        raise


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes, under torchrun or alone."""
    return int(os.environ.get("RANK", "0")) == 0


def _claim(recipe: Recipe, output: Path, resume: bool, overwrite: bool) -> None:
    """Take the output folder for this recipe."""
    values = recipe_values(recipe)
    if resume and (output / STARTED).is_file():
        before = recipe_values(Recipe()) | read_json(output / STARTED)
        other = sorted(key for key in values if before[key] != values[key])
        if other:
            changes = ", ".join(f"{key} {before[key]!r} -> {values[key]!r}" for key in other)
            raise UserError(f"--resume: {output} was started with another recipe ({changes}); give the same one")
        return
    refuse_existing(output, overwrite)
    write_json(output / STARTED, values)


def _announce(inputs: Inputs) -> None:
    recipe = inputs.recipe
    counts = f"{len(inputs.examples.train)} training and {len(inputs.held_out)} held-out questions; loading"
    print(f"{recipe.method}: {', '.join(recipe.tasks)}, {counts} {recipe.model}{idle_gpus(recipe)}", flush=True)


def _memory_advice(recipe: Recipe) -> str:
    half = max(recipe.batch_size // 2, 1)
    return (
        f"out of memory with --batch-size {recipe.batch_size}; run again with --batch-size {half} "
        f"--gradient-accumulation {recipe.gradient_accumulation * 2} (the same training), with --auto-batch, with "
        "--gradient-checkpointing or with --quantisation nf4"
    )


def _temperature(inputs: Inputs, output: Path) -> Artefact:
    started = time.perf_counter()
    recipe = inputs.recipe
    if not inputs.held_out:
        raise UserError(
            f"no question of {', '.join(recipe.tasks)} is left to fit T on; raise --limit, or use a task with more rows"
        )
    model = load_base(recipe)
    if recipe.artifact is not None:
        model = load_adapter(model, Path(recipe.artifact))
    scores = score(model, inputs.held_out, inputs.tokenizer.pad_token_id, recipe.batch_size)
    found = _write_temperature(recipe, output, scores, inputs.gold)
    measures = tuple(harness_measures(scores, inputs.gold, t) for t in (1.0, found["temperature"]))
    documents = {"train": sorted(trained_on(recipe)), "held_out": _hashes(inputs.examples.held_out)}
    return _finish(recipe, output, "temperature", measures, started, documents, inputs.revision, found)


def _write_temperature(recipe: Recipe, output: Path, scores: FloatArray, gold: IntArray) -> dict[str, Any]:
    """Fit T; write temperature.json and the task YAMLs that evaluate it."""
    from calibtune.scaled_tasks import write_scaled_tasks
    from calibtune.temperature import fit_temperature

    found = dataclasses.asdict(fit_temperature(scores, gold, recipe.objective, recipe.bins, recipe.seed))
    if is_first_process():
        write_json(output / "temperature.json", found)
        write_scaled_tasks(output, found["temperature"])
    return found


def fit_samples(recipe: Recipe, output: Path, resume: bool, overwrite: bool) -> Artefact:
    """Fit a temperature on the questions of a samples file, without a model; arguments as for :func:`fit`.

    Raises:
        ScoringError: See :func:`calibtune.samples.read_samples`.
    """
    from calibtune.samples import read_samples

    started = time.perf_counter()
    rows = read_samples(Path(str(recipe.samples)))
    _claim(recipe, output, resume, overwrite)
    recipe = dataclasses.replace(recipe, tasks=recipe.tasks or (rows.task,))
    hashes = [document_hash(doc_to_text(doc) if {"question", "choices"} <= doc.keys() else h)
              for doc, h in zip(rows.docs, rows.doc_hashes, strict=True)]  # fmt: skip
    found = _write_temperature(recipe, output, rows.loglikelihoods, rows.gold)
    measures = tuple(harness_measures(rows.loglikelihoods, rows.gold, t) for t in (1.0, found["temperature"]))
    return _finish(
        recipe, output, "temperature", measures, started, {"train": [], "held_out": hashes}, temperature=found
    )


def _train(inputs: Inputs, output: Path, resume: bool) -> Artefact:
    from transformers import set_seed

    from calibtune.batch import fitting
    from calibtune.crossfit import cross_fitted_tables
    from calibtune.dataset import Questions, TrainingSet
    from calibtune.sharding import save_whole, whole
    from calibtune.trainer import CalibrationTrainer, last_checkpoint, training_arguments

    started, recipe = time.perf_counter(), inputs.recipe
    arguments = training_arguments(recipe, output / CHECKPOINTS)
    data = TrainingSet(inputs.examples.train, inputs.encoder, inputs.max_length, recipe.seed, recipe.shuffle_options)
    questions = Questions(data, inputs.held_out, inputs.tokenizer.pad_token_id)
    model = load_base(recipe)
    with whole(model):
        before = _measures(model, inputs)
    cross_fitted = recipe.method == "rcft" and recipe.e_step_rows == "cross-fitted"
    tables = cross_fitted_tables(model, questions, recipe, output / CHECKPOINTS) if cross_fitted else None
    set_seed(recipe.seed)
    model = add_adapter(model, recipe)
    if recipe.auto_batch:
        with whole(model):
            recipe = fitting(model, questions, recipe, arguments.world_size)
        arguments = training_arguments(recipe, output / CHECKPOINTS)
    trainer = CalibrationTrainer(model, arguments, recipe, questions, tables)
    checkpoint = last_checkpoint(output / CHECKPOINTS) if resume else None
    if checkpoint is not None:
        print(f"resuming from {checkpoint}", flush=True)
        trainer.e_step.load(checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    after = _measures(model, inputs)
    if after and is_first_process() and (advice := overtrained(trainer.nll_before, after["nll"])):
        print(advice, flush=True)
    save_whole(trainer, inputs.tokenizer, output)
    kind = "model" if recipe.tuning == "full" else "adapter"
    documents = {"train": _hashes(inputs.examples.train), "held_out": _hashes(inputs.examples.held_out)}
    return _finish(recipe, output, kind, (before, after), started, documents, inputs.revision)


def _measures(model: Any, inputs: Inputs) -> dict[str, float]:
    if not inputs.held_out:
        return {}
    scores = score(model, inputs.held_out, inputs.tokenizer.pad_token_id, inputs.recipe.batch_size)
    return harness_measures(scores, inputs.gold)


def _finish(
    recipe: Recipe,
    output: Path,
    kind: str,
    measures: tuple[dict[str, float], ...],
    started: float,
    documents: dict[str, list[str]],
    revision: str | None = None,
    temperature: dict[str, Any] | None = None,
) -> Artefact:
    artefact = Artefact(
        kind=kind,
        method=recipe.method,
        model=recipe.model,
        revision=revision,
        tasks=recipe.tasks,
        seed=recipe.seed,
        recipe=recipe_values(recipe),
        documents=documents,
        before=measures[0],
        after=measures[1],
        versions=versions(),
        seconds=round(time.perf_counter() - started, 1),
        peak_memory_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        temperature=temperature,
    )
    if is_first_process():
        artefact.write(output)
        (output / STARTED).unlink(missing_ok=True)
        # What it was resumed from is of no use beside the finished artefact.
        for runs in (output / CHECKPOINTS).glob("runs"):
            shutil.move(runs, output / "runs")  # tensorboard's files, which Trainer writes beside its checkpoints
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return artefact


def _hashes(examples: Sequence[LetterExample]) -> list[str]:
    return [example.doc_hash for example in examples]
