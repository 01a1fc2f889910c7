"""Check an evaluation's input before any weights are loaded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from calibtune.artifacts.manifest import Artifact
from calibtune.data.encoder import Encoder
from calibtune.data.seen import Question, Seen, is_redrawn, task_question
from calibtune.errors import UserError
from calibtune.evaluation.doctor import MASS, check_letters, check_mass
from calibtune.models.loading import context_length, load_config, load_tokenizer
from calibtune.spec import ModelSpec
from harness_ext.orders import count_of
from harness_ext.task import LetterTask, OrderedTask

logger = logging.getLogger(__name__)

#: Questions of each task whose letters are looked at before weights are loaded; the task looks at all of them later.
LOOKED_AT = 8


def check_output(output: Path) -> None:
    """Check that lm_eval takes the output folder for one; that it can be written is seen when it is locked.

    Raises:
        UserError: Its name ends in .json.
    """
    if output.suffix == ".json":
        raise UserError(f"--output {output} ends in .json, which lm_eval takes for a file; give a folder")


def check_model(spec: ModelSpec, arguments: Mapping[str, Any]) -> Any:
    """Check that a model can be evaluated, before any task or weights are loaded.

    Args:
        spec: The base model.
        arguments: Model arguments of lm_eval, which may name another tokenizer.

    Returns:
        The tokenizer.

    Raises:
        UserError: See the functions of :mod:`calibtune.models.loading`; or the spec asks for a
            chat template and the tokenizer has none.
    """
    config = load_config(spec)
    tokenizer = load_tokenizer(tokenizer_spec(spec, arguments))
    context_length(config, tokenizer)
    if spec.apply_chat_template and not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {arguments.get('tokenizer', spec.name)} has no chat template; give "
            "--no-apply-chat-template, or add a chat_template.jinja to its folder"
        )
    return tokenizer


def check_prompts(tasks: Sequence[Any], spec: ModelSpec, tokenizer: Any, artifact: Artifact | None) -> None:
    """Refuse letters that the tokenizer cannot tell apart, and warn of prompts unlike those of the fit.

    Raises:
        UserError: With the task, the letters' tokens and the cause.
    """
    encoder = Encoder(tokenizer, spec)
    for task in tasks:
        if isinstance(task, LetterTask):
            for finding in check_letters(task, encoder, spec.apply_chat_template, LOOKED_AT):
                if not finding.good:
                    raise UserError(finding.text)
    # A temperature fitted on a samples file and another program's adapter do not say how their prompts were rendered.
    known = artifact is not None and not artifact.foreign and not artifact.recipe.get("samples")
    fitted = artifact.spec.apply_chat_template if artifact is not None and known else spec.apply_chat_template
    if fitted != spec.apply_chat_template:
        with_, without = "with the chat template", "without a chat template"
        logger.warning(
            "the artifact was fitted %s and is evaluated %s; leave out --%sapply-chat-template to evaluate it as it "
            "was fitted",
            with_ if fitted else without,
            without if fitted else with_,
            "no-" if fitted else "",
        )


def check_orders(tasks: Sequence[Any], artifact: Artifact | None) -> None:
    """Warn of a temperature that is applied to answers in another number of orders than it was fitted on."""
    if artifact is None or artifact.temperature is None:
        return
    for task in tasks:
        orders = task.orders if isinstance(task, OrderedTask) else 1
        if orders != artifact.orders:
            logger.warning(
                "task %s: the temperature was fitted on %s and is applied to answers in %s, where another is best; "
                "leave out --orders and name the task that asks in one order, to evaluate it as it was fitted",
                task.task_name,
                count_of(artifact.orders),
                count_of(orders),
            )


def warn_of_low_mass(results: Mapping[str, Mapping[str, float]], questions: Mapping[str, int], other: str) -> None:
    """Log which tasks' letters the model gives little probability.

    Args:
        results: Numbers by task and metric.
        questions: By task; groups have none.
        other: See :func:`calibtune.evaluation.doctor.other_prompt`.
    """
    # Of a server that does not show every letter, the mass of those that it shows.
    found = {
        task: numbers.get("letter_mass_least", numbers["letter_mass"])
        for task, numbers in results.items()
        if "letter_mass" in numbers
    }
    low = sorted((mass, task) for task, mass in found.items() if task in questions and mass < MASS)
    if low:
        mass, task = low[0]
        more = f" (and {len(low) - 1} more tasks below {MASS})" if len(low) > 1 else ""
        logger.warning("%s%s", check_mass(task, mass, questions[task], other).text, more)


def tokenizer_spec(spec: ModelSpec, arguments: Mapping[str, Any]) -> ModelSpec:
    """Return the spec of the tokenizer: the base model's, or an artifact's with a chat template.

    Raises:
        UserError: The artifact needs its own tokenizer, which is missing.
    """
    spec = dataclasses.replace(spec, apply_chat_template=False, chat_template=None)
    folder = arguments.get("tokenizer", spec.name)
    if folder == spec.name:
        return spec
    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise UserError(
            f"{folder} was fitted with a chat template, but its tokenizer is missing; copy or fit the artifact again"
        )
    return dataclasses.replace(spec, name=folder, revision=None)


def check_shots(tasks: Sequence[Any], shots: int | None) -> None:
    """Check that each task has enough few-shot examples.

    Raises:
        UserError: A task has fewer; the message names it and its number of examples.
    """
    for task in tasks:
        # The harness gives no examples to a task that sets num_fewshot to 0 itself.
        if not shots or not isinstance(task, ConfigurableTask) or task.get_config("num_fewshot") == 0:
            continue
        # A question of the test split cannot be its own example.
        count = len(task.sampler.fewshot_docs()) - (task.config.fewshot_config.split == task.config.test_split)
        if shots > count:
            raise UserError(
                f"--num-fewshot {shots} is more than the {max(count, 0)} examples of task {task.task_name}; give at "
                "most that number"
            )


def unseen(
    tasks: Sequence[Any], artifact: Artifact | None, drop_seen: bool, limit: int | None
) -> dict[str, list[int]] | None:
    """Check that an artifact is not evaluated on questions that it was fitted on, and warn of similar ones.

    Args:
        tasks: The tasks.
        artifact: The artifact, if one is evaluated.
        drop_seen: Leave such questions out instead of refusing them.
        limit: Evaluate the first so many of the others.

    Returns:
        Numbers of the documents to evaluate by task; None: all of them.

    Raises:
        UserError: A task has such questions; the message gives their number and the first one.
    """
    if artifact is None:
        return None
    seen, kept, dropped = artifact.seen(), dict[str, list[int]](), False
    if seen.prompts:
        logger.warning(
            "%s knows its questions by their exact text alone, as calibtune 0.1.0 did; copies written otherwise are "
            "found after another fit",
            artifact.folder,
        )
    for task in tasks:
        docs = list(task.eval_docs)
        same = _seen_again(task, docs, seen) if task.OUTPUT_TYPE == "multiple_choice" else {}
        kept[task.task_name] = [number for number in range(len(docs)) if number not in same][:limit]
        dropped |= bool(same)
        if not same:
            continue
        said = f"task {task.task_name}: {len(same)} of its {len(docs)} evaluated questions were used for this fit"
        first = f"the first {next(iter(same.values())).text[:60]!r}"
        if not drop_seen or len(same) == len(docs):
            cure = "evaluate on other questions, or fit on another split"
            raise UserError(f"{said}, {first}; {cure}" + ", or leave them out with --drop-seen" * (not drop_seen))
        logger.warning("%s and are left out, %s", said, first)
    return kept if dropped else None


def _seen_again(task: Any, docs: Sequence[dict[str, Any]], seen: Seen) -> dict[int, Question]:
    """Return the questions that were fitted on, by their number; warn of other options and of near copies."""
    same, other, near = dict[int, Question](), list[str](), list[str]()
    for number, doc in enumerate(docs):
        question = task_question(task, doc)
        if seen.same(task, doc, question):
            same[number] = question
        elif is_redrawn(task):
            continue
        elif seen.same_question(question):
            other.append(question.text)
        elif seen.near(question):
            near.append(question.text)
    for texts, what in ((other, "were used for this fit with other options"), (near, "are near copies of this fit's")):
        if texts:
            examples = ", ".join(f"{text[:60]!r}" for text in list(dict.fromkeys(texts))[:3])
            logger.warning(
                "task %s: %d of its %d evaluated questions %s, such as %s",
                task.task_name,
                len(texts),
                len(docs),
                what,
                examples,
            )
    return same
