"""Training examples are the harness's own requests: its task's documents, contexts and letters, chat template too."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from calibtune.errors import UserError
from harness_ext.errors import ScoringError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LetterExample:
    """One question as the harness would ask it."""

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


@dataclass(frozen=True)
class Examples:
    """A fit's questions; no question is in two of the parts."""

    train: tuple[LetterExample, ...]
    #: Kept from training: for T, the E-step on held-out rows, and the numbers shown after each epoch.
    held_out: tuple[LetterExample, ...]


@contextlib.contextmanager
def explained(task: str, doc: Any = None) -> Iterator[None]:
    """One sentence for whatever a task's YAML, its own code, `datasets` or Jinja raise: they have no error in common.

    Args:
        task: The task's name.
        doc: The row that is being rendered, where there is one.

    Raises:
        UserError: With the task, the row, the error and its cause.
    """
    try:
        yield
    except (UserError, ScoringError):
        raise
    except Exception as error:
        # `datasets` says what is wrong with a file in the cause alone.
        causes = [error, *filter(None, [error.__cause__])]
        reason = ", from ".join(f"{type(e).__name__}: {' '.join(str(e).split()):.300}" for e in causes)
        if doc is None:
            what, cure = f"task {task}", "mend its YAML, or make its data set readable from here"
        else:
            what, cure = f"task {task}, row {str(doc)[:80]!r},", "mend the row or the task's YAML"
        raise UserError(f"{what} cannot be used ({reason}); {cure}") from error


def question_text(task: Any, doc: dict[str, Any]) -> str:
    """A document as its task renders it, options included and no few-shot examples: what its hash is taken of.

    Raises:
        UserError: The task cannot render it.
    """
    with explained(task.task_name, doc):
        return str(task.doc_to_text(doc))


def document_hash(text: str) -> str:
    """SHA-256 of a question's text as its task renders it, options included.

    The same question has the same hash in two tasks that render it alike, so that a pool's training rows are
    recognized among another task's evaluated ones.
    """
    return hashlib.sha256(text.strip().encode()).hexdigest()


class Encoder(HFLM):
    """The harness's HF backend without a model: its chat templating and its encoding, and nothing else."""

    def __init__(self, tokenizer: Any) -> None:
        # HFLM's own constructor would load weights; these are all that encoding and templating read.
        self.tokenizer = tokenizer
        self.backend = "causal"
        self.add_bos_token = None
        self.chat_template_args: dict[str, Any] = {}
        self.custom_prefix_token_id = None
        # Asked for by the checks of tasks that are being evaluated in the same process.
        self._max_length = tokenizer.model_max_length

    def encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context and of its continuation, split as the harness splits them."""
        return self._encode_pair(context, continuation)


@dataclass(frozen=True)
class Prompts:
    """One task's way of turning a document into an example."""

    task: Any
    encoder: Encoder
    apply_chat_template: bool

    def example(self, doc: dict[str, Any], doc_hash: str | None = None) -> LetterExample:
        """Render a document with the task's own code.

        Raises:
            UserError: The task cannot render the document, or it has no right answer among its options.
        """
        template = self.encoder.apply_chat_template if self.apply_chat_template else None
        chat: dict[str, Any] = {"apply_chat_template": self.apply_chat_template, "chat_template": template}
        with explained(self.task.task_name, doc):
            prefix = self.task.doc_to_prefix(doc)
            context = self.task.fewshot_context(doc, num_fewshot=0, gen_prefix=prefix, **chat)
            requests = self.task.construct_requests(doc=doc, ctx=context, metadata=(self.task.task_name, 0, 1), **chat)
            gold = self.task.doc_to_target(doc)
        letters = tuple(request.args[1] for request in requests)
        if not isinstance(gold, int) or not 0 <= gold < len(letters):
            raise UserError(
                f"task {self.task.task_name}: the right answer of {str(doc)[:80]!r} is {gold!r}, not the index of one "
                f"of its {len(letters)} options; fit on a task whose doc_to_target gives an index"
            )
        return LetterExample(context, letters, gold, doc_hash or self.hash(doc), doc, self)

    def hash(self, doc: dict[str, Any]) -> str:
        """The document's hash; see :func:`document_hash`."""
        return document_hash(question_text(self.task, doc))


def reorder(example: LetterExample, permutation: Sequence[int]) -> LetterExample:
    """The same question with its options in another order.

    Args:
        example: Any example whose document has a list ``choices`` and the index of the right one in ``gold`` or
            ``answer``.
        permutation: ``permutation[i]`` is the old place of the option shown in place i.

    Returns:
        The new example, with the old one's hash.

    Raises:
        UserError: The document has no such fields.
    """
    doc = example.doc
    key = next((key for key in ("gold", "answer") if doc.get(key) == example.gold), None)
    if key is None or not isinstance(doc.get("choices"), list) or len(doc["choices"]) != len(example.letters):
        raise UserError(
            f"task {example.prompts.task.task_name}: --shuffle-options needs documents with a list `choices` and the "
            f"right one's index in `gold` or `answer`, found {sorted(doc)}; use --no-shuffle-options"
        )
    choices = [doc["choices"][old] for old in permutation]
    return example.prompts.example(
        {**doc, "choices": choices, key: list(permutation).index(example.gold)}, example.doc_hash
    )


def task_manager(names: Sequence[str], include_path: str | None = None) -> TaskManager:
    """The harness's index of tasks, of our own alone where that suffices: the full one takes ten seconds and more.

    Args:
        names: Task or group names that must be in it.
        include_path: Folder of further YAMLs.

    Raises:
        UserError: A name is unknown, with close ones; or there is no such folder.
    """
    if include_path and not Path(include_path).is_dir():
        raise UserError(f"--include-path {include_path} is no folder; give one that holds task YAMLs")
    own = Path(lm_eval.__file__).parent / "tasks" / "mc_calib"
    paths: list[str | Path] = [*([own] if own.is_dir() else []), *([include_path] if include_path else [])]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, 3)
            hint = f"; did you mean {', '.join(close)}?" if close else ";"
            raise UserError(
                f"the harness knows no task {name!r}{hint} run `lm_eval ls tasks` for all, or give --include-path"
            )
    return manager


def load_tasks(names: Sequence[str], include_path: str | None = None) -> list[Any]:
    """Load tasks by name as the harness does, groups opened.

    Args:
        names: Task or group names.
        include_path: Folder of further YAMLs.

    Raises:
        UserError: A name is unknown, or a task's YAML, code or data set cannot be loaded.
    """
    manager = task_manager(names, include_path)
    with explained(", ".join(names)):
        return list(manager.load(list(names))["tasks"].values())


def load_examples(
    tasks: Iterable[Any],
    encoder: Encoder,
    apply_chat_template: bool,
    held_out: int,
    seed: int,
    limit: int | None,
    never_held_out: frozenset[str] = frozenset(),
) -> Examples:
    """The training questions of some tasks, a part of them held out.

    Args:
        tasks: Harness tasks; their training split is used, or the validation split where there is none.
        encoder: Of the model's tokenizer.
        apply_chat_template: Render prompts as chat.
        held_out: Questions to hold out, at most a quarter of all.
        seed: Of the draw.
        limit: Use at most this many questions in all.
        never_held_out: Hashes of documents that an adapter was trained on, which cannot tell its calibration.

    Returns:
        The examples, in a random order that the seed fixes.

    Raises:
        UserError: A task is not multiple choice, has no training rows, or all its rows are evaluated ones too.
    """
    found: dict[str, tuple[Prompts, dict[str, Any]]] = {}
    for task in tasks:
        prompts = Prompts(task, encoder, apply_chat_template)
        evaluated = {prompts.hash(doc) for doc in task.eval_docs}
        docs = training_documents(task)
        kept = {h: doc for doc in docs if (h := prompts.hash(doc)) not in evaluated}
        if len(kept) < len(docs):
            logger.warning(
                "%s: %d of %d training questions are evaluated too, or appear twice, and are left out",
                task.task_name, len(docs) - len(kept), len(docs),
            )  # fmt: skip
        if not kept:
            raise UserError(
                f"task {task.task_name}: all of its {len(docs)} training questions are evaluated too; "
                "fit on another task"
            )
        found |= {h: (prompts, doc) for h, doc in kept.items()}
    hashes = list(found)
    drawn = [hashes[i] for i in np.random.default_rng(seed).permutation(len(hashes))[:limit]]
    allowed = [h for h in drawn if h not in never_held_out]
    chosen = set(allowed[: min(held_out, len(drawn) // 4)])
    # Rendered only now: a data set of 200,000 rows is asked about a few thousand.
    rendered = {h: found[h][0].example(found[h][1], h) for h in drawn}
    return Examples(
        train=tuple(rendered[h] for h in drawn if h not in chosen),
        held_out=tuple(rendered[h] for h in drawn if h in chosen),
    )


def training_documents(task: Any) -> list[dict[str, Any]]:
    """A task's training documents, or its validation ones where it has none and evaluates others.

    Raises:
        UserError: It is not multiple choice, has neither, or they cannot be read.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(
            f"task {task.task_name} is {task.OUTPUT_TYPE}, not multiple_choice; fit on one that has letters"
        )
    with explained(task.task_name):
        if task.has_training_docs():
            return list(task.training_docs())
        if task.has_validation_docs() and task.has_test_docs():
            return list(task.validation_docs())
    raise UserError(
        f"task {task.task_name} has no training rows and no validation rows that it does not evaluate; "
        "add a training_split to its YAML or fit on another task"
    )
