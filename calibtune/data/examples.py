"""Turn a task's documents into questions as the harness asks them: its contexts, letters and chat template."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from calibtune.data.seen import Question, Seen, is_redrawn, task_question
from calibtune.data.tasks import document_hash, explained, question_text, training_documents
from calibtune.errors import UserError
from harness_ext.orders import Orders, check_shown, cyclic, reordered

logger = logging.getLogger(__name__)


class Renders(Protocol):
    """Render a chat's messages: the encoder of a model's tokenizer, or a server that does it itself."""

    def apply_chat_template(self, *args: Any, **options: Any) -> str:
        """Return messages as one text."""


@dataclass(frozen=True)
class LetterExample:
    """Hold one question as the harness would ask it."""

    #: The rendered prompt.
    context: str
    #: What the harness appends to it for each option: delimiter and letter.
    letters: tuple[str, ...]
    #: Index of the right letter.
    gold: int
    #: Hash of the question as shown in its own order; see :func:`document_hash`.
    doc_hash: str
    doc: dict[str, Any]
    #: Renders the document again in another order of its options.
    prompts: Prompts = field(repr=False, compare=False)

    @property
    def question(self) -> Question:
        """Return the question by which its copies are known."""
        return task_question(self.prompts.task, self.doc)


@dataclass(frozen=True)
class Examples:
    """Hold a fit's questions; no question is in two of the parts."""

    train: tuple[LetterExample, ...]
    #: Kept from training: for T, the E-step on held-out rows, and the numbers shown after each epoch.
    held_out: tuple[LetterExample, ...]


@dataclass(frozen=True)
class Prompts:
    """Turn a task's documents into examples."""

    task: Any
    encoder: Renders
    apply_chat_template: bool

    def example(self, doc: dict[str, Any], doc_hash: str | None = None) -> LetterExample:
        """Render a document with the task's own code.

        Raises:
            UserError: The task cannot render the document, or it has no right answer among its options.
        """
        template = self.encoder.apply_chat_template if self.apply_chat_template else None
        chat: dict[str, Any] = {"apply_chat_template": self.apply_chat_template, "chat_template": template}
        with explained(self.task.task_name, doc):
            context = self.task.fewshot_context(doc, num_fewshot=0, gen_prefix=_prefix(self.task, doc), **chat)
            requests = self.task.construct_requests(doc=doc, ctx=context, doc_id=0, **chat)
            gold = self.task.doc_to_target(doc)
        letters = tuple(request.args[1] for request in requests)
        if not isinstance(gold, int) or not 0 <= gold < len(letters):
            raise UserError(
                f"task {self.task.task_name}: the right answer of {str(doc)[:80]!r} is {gold!r}, not the index of one "
                f"of its {len(letters)} options; fit on a task whose doc_to_target gives an index"
            )
        return LetterExample(context, letters, gold, doc_hash or self.hash(doc), doc, self)

    def hash(self, doc: dict[str, Any]) -> str:
        """Return the document's hash; see :func:`document_hash`."""
        return document_hash(question_text(self.task, doc))

    def key(self, doc: dict[str, Any]) -> str:
        """Return what the document's copies have in common; see :meth:`Question.key`."""
        return task_question(self.task, doc).key(is_redrawn(self.task))


def _prefix(task: Any, doc: dict[str, Any]) -> str | None:
    """Return the beginning of the answer that a task gives."""
    if hasattr(task, "doc_to_prefix"):  # lm_eval 0.4.13
        return task.doc_to_prefix(doc)
    return task.doc_to_text(doc, task.config.gen_prefix) if task.config.gen_prefix else None


def reorder(
    example: LetterExample,
    permutation: Sequence[int],
    option: str = "--shuffle-options",
    cure: str = "--no-shuffle-options",
) -> LetterExample:
    """Return the same question with its options in another order.

    Args:
        example: Any example whose document has a list ``choices`` and the index of the right one in ``gold`` or
            ``answer``.
        permutation: ``permutation[i]`` is the old place of the option shown in place i.
        option: The flag that asks for it, and
        cure: the one to use where it cannot be done.

    Returns:
        The new example, with the old one's hash.

    Raises:
        UserError: The document has no such fields.
    """
    task = f"task {example.prompts.task.task_name}"
    doc = reordered(example.doc, example.gold, permutation, f"{task}: {option}", f"use {cure}")
    return example if doc is example.doc else example.prompts.example(doc, example.doc_hash)


def in_orders(example: LetterExample, orders: Orders) -> list[LetterExample]:
    """Return a question in several cyclic orders of its options, its own first.

    Raises:
        UserError: Its document has no such fields as :func:`reorder` needs, or its prompt does not show the order.
    """
    permutations = cyclic(len(example.letters), orders)
    shown = [reorder(example, permutation, "--orders", "one order") for permutation in permutations]
    check_shown([each.context for each in shown], example.prompts.task.task_name)
    return shown


def load_examples(
    tasks: Iterable[Any],
    encoder: Renders,
    apply_chat_template: bool,
    held_out: int,
    seed: int,
    limit: int | None,
    never_held_out: Seen | None = None,
    largest_share: float = 0.25,
) -> Examples:
    """Load the training questions of some tasks, a part of them held out.

    Args:
        tasks: Harness tasks; their training split is used, or the validation split where there is none.
        encoder: Of the model's tokenizer, or a server.
        apply_chat_template: Render prompts as chat.
        held_out: Questions to hold out, at most ``largest_share`` of all.
        seed: Of the draw.
        limit: Use at most this many questions in all.
        never_held_out: Questions that an adapter was trained on, which cannot tell its calibration.
        largest_share: Of the questions that may be held out; 1 where nothing is trained.

    Returns:
        The examples, in a random order that the seed fixes.

    Raises:
        UserError: A task is not multiple choice, has no training rows, or all its rows are evaluated ones too.
    """
    found: dict[str, tuple[Prompts, dict[str, Any]]] = {}
    for task in tasks:
        prompts = Prompts(task, encoder, apply_chat_template)
        docs = training_documents(task)
        evaluated = {prompts.key(doc) for doc in task.eval_docs}
        kept = {key: doc for doc in docs if (key := prompts.key(doc)) not in evaluated}
        if len(kept) < len(docs):
            logger.warning(
                "%s: %d of %d training questions are evaluated too, or appear twice, and are left out",
                task.task_name,
                len(docs) - len(kept),
                len(docs),
            )
        if not kept:
            raise UserError(
                f"task {task.task_name}: all of its {len(docs)} training questions are evaluated too; "
                "fit on another task"
            )
        found |= {key: (prompts, doc) for key, doc in kept.items()}
    keys = list(found)
    drawn = [keys[i] for i in np.random.default_rng(seed).permutation(len(keys))[:limit]]
    # Rendered only now: a data set of 200,000 rows is asked about a few thousand.
    rendered = {key: found[key][0].example(found[key][1]) for key in drawn}
    allowed = [key for key in drawn if never_held_out is None or not _in(never_held_out, rendered[key])]
    chosen = set(allowed[: min(held_out, int(len(drawn) * largest_share))])
    return Examples(
        train=tuple(rendered[key] for key in drawn if key not in chosen),
        held_out=tuple(rendered[key] for key in drawn if key in chosen),
    )


def _in(seen: Seen, example: LetterExample) -> bool:
    return seen.same(example.prompts.task, example.doc, example.question)
