"""One fit from recipe to artifact: read the questions, load the model, train or search T, measure, write."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from calibtune.artifacts.card import model_card
from calibtune.artifacts.manifest import (
    MANIFEST,
    STARTED,
    Artifact,
    FittedTemperature,
    Kind,
    base_model,
    read_artifact,
    show_base,
    versions,
    write_manifest,
)
from calibtune.artifacts.named import adapter_folder, named
from calibtune.data.examples import LetterExample
from calibtune.data.seen import Marks, question_of
from calibtune.data.tokens import PAD
from calibtune.errors import UserError, WorkFailed, is_out_of_memory
from calibtune.files import keep_inputs, refuse_existing, write_json, write_text
from calibtune.models.adapters import load_adapter
from calibtune.models.attention import attention_of_any_shape
from calibtune.models.fingerprint import fingerprint
from calibtune.models.loading import check_spec, load_base, load_config, read_template, resolved_precision
from calibtune.models.quantized import held_as
from calibtune.models.scores import score
from calibtune.models.sharding import launched_with
from calibtune.processes import is_first_process, seldom_collecting
from calibtune.reading import read_json
from calibtune.recipe import Recipe, recipe_values, recorded
from calibtune.results.measures import floor_measures, harness_measures
from calibtune.spec import ModelSpec
from calibtune.text import visible
from calibtune.tuning.checkpoints import CHECKPOINTS, last_checkpoint, remove_unfinished
from calibtune.tuning.checks import check_shared, idle_gpus
from calibtune.tuning.estep import score_bins
from calibtune.tuning.inputs import Inputs, read_inputs
from calibtune.tuning.progress import overtrained
from calibtune.tuning.trainable import add_adapter
from harness_ext.binning import FloatArray, IntArray
from harness_ext.orders import averages, count_of
from harness_ext.ranges import BoolArray

logger = logging.getLogger(__name__)

#: Questions that a model which was trained in full is asked again once it is written and loaded.
ASKED = 4
#: A disk with fewer free bytes is full.
FULL = 2**16


@seldom_collecting()
@attention_of_any_shape()
def fit(recipe: Recipe, output: Path, resume: bool = False, overwrite: bool = False) -> Artifact:
    """Run a fit.

    Args:
        recipe: What to do.
        output: The artifact's folder.
        resume: Go on from the last whole checkpoint there.
        overwrite: Remove what lies there.

    Returns:
        The finished artifact.

    Raises:
        UserError: Bad input, before anything is loaded where it can be known.
        WorkFailed: Out of memory, a loss that is not finite, a full disk.
    """
    recipe = prepared(recipe)
    if resume:
        check_shared(recipe, output)
    if resume and (output / MANIFEST).is_file():
        artifact = read_artifact(output)
        refuse_other(recipe, artifact.recipe, output)
        return artifact
    # Bad input must neither remove what --overwrite is for nor leave a folder behind: it is taken once all is read.
    if is_first_process():
        check_output(recipe, output, resume, overwrite)
    if recipe.samples is not None:
        return fit_samples(recipe, output, resume, overwrite)
    if recipe.backend == "api":
        return fit_served(recipe, output, resume, overwrite)
    if recipe.trains:
        from calibtune.tuning.trainer import training_arguments

        training_arguments(recipe, output / CHECKPOINTS)  # refuses what Trainer does not take
    started, inputs = time.perf_counter(), read_inputs(recipe)
    if is_first_process():
        _announce(inputs)
    try:
        # No name here holds the loaded model: one that FSDP splits makes way for another with the same weights.
        if recipe.method == "temperature":
            return _temperature(inputs, _begun(recipe, output, resume, overwrite), output, started)
        if recipe.method == "strength":
            return _strength(inputs, _begun(recipe, output, resume, overwrite), output, started)
        return _train(inputs, _begun(recipe, output, resume, overwrite), output, resume, started)
    except Exception as error:
        if is_out_of_memory(error):
            raise WorkFailed(_memory_advice(recipe)) from error
        # Each library has its own error for it: OSError, SafetensorError, RuntimeError of torch.save.
        if shutil.disk_usage(output if output.exists() else Path()).free < FULL or "No space left" in str(error):
            raise WorkFailed(
                f"no space is left on the disk of {output}; free some and run the same command with --resume"
            ) from error
        raise


def prepared(recipe: Recipe) -> Recipe:
    """Return the recipe with its base model, local folders and precision, which an evaluation elsewhere takes too.

    Raises:
        UserError: The model or the chat template cannot be used; or see :func:`_on_base`.
    """
    if recipe.samples is not None or recipe.backend != "hf":
        return recipe
    # Before the hub is asked for the model.
    check_spec(recipe.spec)
    if recipe.chat_template is not None:
        read_template(recipe.chat_template)
    recipe = _on_base(recipe)
    return dataclasses.replace(recipe, precision=resolved_precision(recipe.spec))


def _on_base(recipe: Recipe) -> Recipe:
    """Return the recipe with its base model and the local folder of the adapter on it, if there is one.

    Raises:
        UserError: An adapter is to be trained on; or see :func:`calibtune.tuning.strength.as_fitted`.
    """
    if recipe.method == "strength":
        from calibtune.tuning.strength import as_fitted

        return as_fitted(recipe)
    if recipe.trains or recipe.method == "auto":
        if folder := adapter_folder(recipe.model, recipe.revision):
            raise UserError(
                f"--model {recipe.model} is an adapter; train on the model that it makes: python -m calibtune merge "
                f"--artifact {shlex.quote(str(folder))} --output MERGED, then fit with --model MERGED"
            )
        return recipe
    below = Path(recipe.artifact) if recipe.artifact else None
    model, folder, revision = named(recipe.model or None, below, recipe.revision)
    if folder is None:
        return recipe
    artifact = read_artifact(folder)
    if is_first_process():
        show_base(artifact)
    revision = revision or (artifact.revision if model is None else None)
    return dataclasses.replace(recipe, model=base_model(model, artifact), artifact=str(folder), revision=revision)


def check_output(recipe: Recipe, output: Path, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder that this fit may not have, and change nothing."""
    if overwrite:
        given = (recipe.model, recipe.artifact, recipe.samples, recipe.chat_template, recipe.include_path, recipe.data)
        keep_inputs(output, Path.cwd(), *given)
    if resume and (output / STARTED).is_file():
        started = read_json(output / STARTED, dict[str, Any], "begin anew with --overwrite")
        # Replies of a server are known by what was asked, so that T can be fitted to them otherwise.
        if not recipe.backend == started.get("backend") == "api":
            refuse_other(recipe, recorded(started, str(output / STARTED)), output)
    elif not overwrite:
        refuse_existing(output, overwrite)


def refuse_other(recipe: Recipe, before: Mapping[str, Any], output: Path) -> None:
    """Refuse to resume a fit with another recipe."""
    values = recipe_values(recipe)
    # What a finished fit has filled in by itself.
    own = {"batch_size", "gradient_accumulation"} if recipe.auto_batch else set[str]()
    own |= {"tasks", "orders"} if recipe.samples else set()
    # A local server has another port each time, and its replies are known by what was asked.
    own |= {"base_url"}
    # They compute the same. A finished fit says whether it had them; this machine need not have what that one had.
    own |= {"liger_kernel", "cuda_graphs"}
    other = sorted(key for key in values if before[key] != values[key] and key not in own)
    if other:
        changes = ", ".join(f"{key} {before[key]!r} -> {values[key]!r}" for key in other)
        raise UserError(
            f"--resume: {output} was started with another recipe ({changes}); give the same one, or begin anew with "
            "--overwrite"
        )


def claim(recipe: Recipe, output: Path, resume: bool, overwrite: bool) -> None:
    """Take the output folder for this recipe."""
    if not is_first_process() or (resume and (output / STARTED).is_file()):
        return
    refuse_existing(output, overwrite)
    write_json(output / STARTED, recipe_values(recipe))


def _begun(recipe: Recipe, output: Path, resume: bool, overwrite: bool) -> Any:
    """Load the model, take the output folder, and return the model."""
    full = recipe.tuning == "full" and recipe.trains
    # bfloat16 weights lose small updates, so a model that is trained in full is held in float32.
    model = load_base(recipe.spec, torch.float32 if full else None, in_shares=recipe.artifact is None)
    if recipe.artifact is not None:
        model = load_adapter(model, Path(recipe.artifact))
    claim(recipe, output, resume, overwrite)
    return model


def _announce(inputs: Inputs) -> None:
    recipe = inputs.recipe
    counts = f"{len(inputs.examples.train)} training and {len(inputs.examples.held_out)} held-out questions; loading"
    names, model = ", ".join(recipe.questions.names), visible(recipe.model)
    kernels = ", with Liger's kernels" if recipe.liger_kernel else ""
    logger.info("%s: %s, %s %s%s", recipe.method, names, counts, model, kernels)


def _memory_advice(recipe: Recipe) -> str:
    half = max(recipe.batch_size // 2, 1)
    # Where the model is split, a process that runs out of memory alone leaves the others waiting.
    auto = "" if launched_with("FSDP") else "with --auto-batch, "
    return (
        f"out of memory with --batch-size {recipe.batch_size}; run again with --batch-size {half} "
        f"--gradient-accumulation {recipe.gradient_accumulation * 2} (the same training), {auto}with "
        "--gradient-checkpointing or with --quantization nf4"
    )


def _temperature(inputs: Inputs, model: Any, output: Path, started: float) -> Artifact:
    recipe, options = inputs.recipe, [len(example.letters) for example in inputs.examples.held_out]
    scores = averages(score(model, inputs.held_out, PAD, recipe.batch_size), options, recipe.orders)
    found = _write_temperature(recipe, output, scores, inputs.gold, np.zeros(scores.shape, dtype=bool))
    if recipe.chat_template is not None and is_first_process():
        inputs.tokenizer.save_pretrained(output)  # the base's own has no template to evaluate with
    measures = _temperature_measures(recipe, scores, inputs.gold)
    adapter = inputs.adapter
    trained = Marks.of([]) if adapter is None else Marks(adapter.documents["train"], adapter.sketches.get("train", ""))
    marks = {"train": trained, "held_out": _marks(inputs.examples.held_out)}
    return _finish(recipe, output, "temperature", measures, started, marks, inputs.revision, found)


def _strength(inputs: Inputs, model: Any, output: Path, started: float) -> Artifact:
    from calibtune.tuning.strength import find_strength, write_scaled

    recipe, adapter = inputs.recipe, cast(Artifact, inputs.adapter)
    found = find_strength(model, inputs.held_out, inputs.gold, recipe)
    if is_first_process():
        write_scaled(adapter, found.value, output)
        inputs.tokenizer.save_pretrained(output)
    measures = _measured(found.before, inputs.gold), _measured(found.after, inputs.gold)
    marks = {role: Marks(adapter.documents[role], adapter.sketches.get(role, "")) for role in ("train", "held_out")}
    recipe = dataclasses.replace(recipe, chat_template=adapter.recipe["chat_template"])
    return _finish(recipe, output, "adapter", measures, started, marks, inputs.revision, strength=found.value)


def _write_temperature(
    recipe: Recipe, output: Path, scores: FloatArray, gold: IntArray, unseen: BoolArray
) -> FittedTemperature:
    """Fit T; write temperature.json and the task YAMLs that evaluate it.

    Raises:
        UserError: See :func:`calibtune.tuning.temperature.check_unseen`.
    """
    from calibtune.artifacts.tasks import write_scaled_tasks
    from calibtune.tuning.temperature import check_unseen, fit_temperature

    fitted = fit_temperature(scores, gold, recipe.objective, recipe.bins, recipe.seed)
    if unseen.any():
        fitted = check_unseen(fitted, scores, unseen, gold, recipe.bins)
    found = cast(FittedTemperature, fitted.record())
    if is_first_process():
        write_json(output / "temperature.json", found)
        write_scaled_tasks(output, found["temperature"], recipe.orders)
    return found


class Measured(NamedTuple):
    """Hold the held-out questions' metrics, and count, accuracy and confidence of each bin; empty without questions."""

    numbers: dict[str, float]
    bins: list[list[float]]


def _measured(scores: FloatArray, gold: IntArray) -> Measured:
    table = score_bins(scores, gold, 10)
    bins = np.nan_to_num(np.stack([table.count, table.accuracy, table.confidence], axis=1))
    noise = floor_measures(scores, gold, bins=(10,))
    numbers = harness_measures(scores, gold) | {name: noise[name] for name in ("conf_ece_10_p", "cw_ece_10_p")}
    return Measured(numbers, bins.tolist())


def _temperature_measures(recipe: Recipe, scores: FloatArray, gold: IntArray) -> tuple[Measured, Measured]:
    """Measure before and after, each question at a T that was fitted on others."""
    from calibtune.tuning.temperature import cross_fitted

    before = _measured(scores, gold)
    after = _measured(cross_fitted(scores, gold, recipe.objective, recipe.bins, recipe.seed), gold)
    # The mass of the letters among all tokens does not depend on T.
    return before, Measured(after.numbers | {"letter_mass": before.numbers["letter_mass"]}, after.bins)


def fit_samples(recipe: Recipe, output: Path, resume: bool, overwrite: bool) -> Artifact:
    """Fit a temperature on the questions of a samples file, without a model; arguments as for :func:`fit`.

    Raises:
        UserError: See :func:`calibtune.results.samples.read_samples`.
    """
    from calibtune.results.samples import read_prompts, read_samples

    started, path = time.perf_counter(), Path(str(recipe.samples))
    rows, prompts = read_samples(path), read_prompts(path)
    if recipe.orders not in (1, rows.orders):
        raise UserError(
            f"--orders is {recipe.orders}, but the questions of {path} were asked in {count_of(rows.orders)}; "
            "leave it out"
        )
    claim(recipe, output, resume, overwrite)
    recipe = dataclasses.replace(recipe, tasks=recipe.tasks or (rows.task,), orders=rows.orders)
    asked = Marks.of(question_of(doc, *prompt) for doc, prompt in zip(rows.documents, prompts, strict=True))
    found = _write_temperature(recipe, output, rows.log_probs, rows.labels, rows.unseen)
    measures = _temperature_measures(recipe, rows.log_probs, rows.labels)
    marks = {"train": Marks.of([]), "held_out": asked}
    return _finish(recipe, output, "temperature", measures, started, marks, temperature=found)


def fit_served(recipe: Recipe, output: Path, resume: bool, overwrite: bool) -> Artifact:
    """Fit a temperature to a model behind an OpenAI-compatible server; arguments as for :func:`fit`.

    Raises:
        UserError: The questions or the server cannot be used, or it does not show letters on which T depends.
        WorkFailed: The server did not answer; ``resume`` asks for the rest.
    """
    from calibtune.data.examples import load_examples
    from calibtune.data.source import load_questions
    from calibtune.endpoints.endpoint import Endpoint
    from calibtune.models.served import REPLIES, served
    from harness_ext.ragged import ragged

    started = time.perf_counter()
    Endpoint.from_environment(recipe.base_url)  # refuses a malformed one before anything is removed
    _, tasks = load_questions(recipe.questions)
    claim(recipe, output, resume, overwrite)
    try:
        again = "run the same command with --resume"
        with served(recipe.base_url, recipe.spec, recipe.batch_size, output, again) as server:
            shown = (recipe.held_out, recipe.draw_seed, recipe.limit, None, 1.0)
            examples = load_examples(tasks, server, recipe.apply_chat_template, *shown).held_out
            if not examples:
                raise UserError(f"no question of {', '.join(recipe.questions.names)} is left; raise --limit")
            found = server.ask({example.context: example.letters for example in examples})
    finally:
        if not (output / REPLIES).exists():
            (output / STARTED).unlink(missing_ok=True)
    letters = [found[example.context] for example in examples]
    scores = ragged([letter.loglikelihood for letter in some] for some in letters)
    unseen = ragged([not letter.shown for letter in some] for some in letters) == 1
    gold = np.array([example.gold for example in examples], dtype=np.int64)
    temperature = _write_temperature(recipe, output, scores, gold, unseen)
    measures = _temperature_measures(recipe, scores, gold)
    marks = {"train": Marks.of([]), "held_out": _marks(examples)}
    return _finish(recipe, output, "temperature", measures, started, marks, temperature=temperature)


def _train(inputs: Inputs, model: Any, output: Path, resume: bool, started: float) -> Artifact:
    from transformers import set_seed

    from calibtune.artifacts.whole_models import check_answers
    from calibtune.models.sharding import save_whole, split_by_fsdp, whole
    from calibtune.models.shares import Shares, split, without_weights
    from calibtune.tuning.memory import fitting
    from calibtune.tuning.trainer import CalibrationTrainer, training_arguments

    recipe = inputs.recipe
    arguments = training_arguments(recipe, output / CHECKPOINTS)
    questions = inputs.questions
    with whole(model):
        scores_before = _scores(model, inputs)
    before = _measures(scores_before, inputs)
    shares: Shares | None = None
    if split_by_fsdp(model):
        model, shares = without_weights(model)
    set_seed(recipe.seed)
    model = add_adapter(model, recipe)
    if recipe.auto_batch:
        with whole(model):
            recipe = fitting(model, questions, recipe, arguments.world_size)
        arguments = training_arguments(recipe, output / CHECKPOINTS)
    # A new adapter changes nothing, so these are the scores before the first epoch too.
    trainer = CalibrationTrainer(model, arguments, recipe, questions, scores_before)
    # One process with graphs is faster than several without, unless batches are large.
    if not trainer.recipe.cuda_graphs and (hint := idle_gpus(recipe)):
        logger.info("%s", hint)
    if shares is not None:
        split(trainer, shares)
    checkpoint = last_checkpoint(output / CHECKPOINTS) if resume else None
    trainer.accelerator.wait_for_everyone()
    if is_first_process():
        remove_unfinished(output / CHECKPOINTS)
    if checkpoint is not None:
        logger.info("resuming from %s", checkpoint)
        trainer.e_step.load(checkpoint)
    with trainer.completing():
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        recipe = trainer.recipe
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        after = _measures(_scores(model, inputs), inputs)
        if after.bins and is_first_process() and (advice := overtrained(trainer.nll_before, after.numbers["nll"])):
            logger.warning("%s", advice)
        asked = (inputs.held_out or questions.train.rows)[: ASKED if recipe.tuning == "full" else 0]
        scores = score(model, asked, questions.pad_id, recipe.batch_size) if asked else None
        save_whole(trainer, inputs.tokenizer, output)
        if scores is not None and is_first_process():
            written = ModelSpec(str(output), device="cpu", trust_remote_code=recipe.trust_remote_code)
            check_answers(written, asked, scores, questions.pad_id)
    kind: Kind = "model" if recipe.tuning == "full" else "adapter"
    marks = {"train": _marks(inputs.examples.train), "held_out": _marks(inputs.examples.held_out)}
    artifact = _finish(recipe, output, kind, (before, after), started, marks, inputs.revision)
    trainer.accelerator.wait_for_everyone()
    if not is_first_process() and output.is_dir():
        # Each process has written its part of the checkpoints, on a node with a folder of its own, too.
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        with contextlib.suppress(OSError):
            output.rmdir()
    return artifact


def _scores(model: Any, inputs: Inputs) -> FloatArray | None:
    return score(model, inputs.held_out, PAD, inputs.recipe.batch_size) if inputs.held_out else None


def _measures(scores: FloatArray | None, inputs: Inputs) -> Measured:
    return Measured({}, []) if scores is None else _measured(scores, inputs.gold)


def _finish(
    recipe: Recipe,
    output: Path,
    kind: Kind,
    measures: tuple[Measured, Measured],
    started: float,
    marks: Mapping[str, Marks],
    revision: str | None = None,
    temperature: FittedTemperature | None = None,
    strength: float | None = None,
) -> Artifact:
    asked = bool(recipe.model) and recipe.backend == "hf" and is_first_process()
    artifact = Artifact(
        kind=kind,
        method=recipe.method,
        model=recipe.model,
        revision=revision,
        tasks=recipe.questions.names,
        seed=recipe.seed,
        recipe=recipe_values(recipe),
        documents={role: part.keys for role, part in marks.items()},
        sketches={role: part.sketches for role, part in marks.items()},
        before=measures[0].numbers,
        after=measures[1].numbers,
        reliability={role: part.bins for role, part in zip(("before", "after"), measures, strict=True) if part.bins},
        versions=versions(),
        seconds=round(time.perf_counter() - started, 1),
        peak_memory_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        temperature=temperature,
        strength=strength,
        fingerprint=fingerprint(recipe.spec) if asked else None,
        base_quantization=held_as(load_config(recipe.spec)) if asked else None,
        folder=output,
    )
    if is_first_process():
        write_text(output / "README.md", model_card(artifact))
        write_manifest(artifact, output)
        (output / STARTED).unlink(missing_ok=True)
        # What it was resumed from is of no use beside the finished artifact.
        for runs in (output / CHECKPOINTS).glob("runs"):
            shutil.move(runs, output / "runs")  # tensorboard's files, which Trainer writes beside its checkpoints
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return artifact


def _marks(examples: Sequence[LetterExample]) -> Marks:
    return Marks.of(example.question for example in examples)
