"""Know a question again that a fit has used: by its normalized text and options, or by a sketch of both."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibtune.data.tasks import document_hash, explained, question_text
from calibtune.errors import UserError
from harness_ext.copies import BYTES, Sketch, normalized, similarity, sketch
from harness_ext.world import questions as world

#: Names of the fields that hold a document's question, and its options where they are in columns.
QUESTION, COLUMNS = ("question", "question_stem"), ("opa", "opb", "opc", "opd")
#: Tasks that ask the same questions again and draw their right answers anew: there another order of the options is
#: another question.
REDRAWN = (world.in_domain, world.out_domain)
#: A field of so many letters that the prompt shows is a passage, without which the question is another.
PASSAGE = 40
#: Questions whose shingles have this share in common are near copies. Of mc_calib_indomain's 2,000 test questions 11
#: are this near to one of the 3,000 training questions.
NEAR = 0.6


@dataclass(frozen=True)
class Question:
    """Hold a question as it is compared."""

    #: As its document has it.
    text: str
    #: Normalized, with the passage that the prompt shows.
    question: str
    #: Normalized, in the order shown.
    options: tuple[str, ...] = field(repr=False)

    def key(self, ordered: bool = False) -> str:
        """Return hashes of the question and the set of its options; ``ordered``: and of their order."""
        parts = [self.question, "\n".join(sorted(set(self.options))), *["\n".join(self.options)] * ordered]
        return "-".join(hashlib.blake2b(part.encode("utf-8", "replace"), digest_size=8).hexdigest() for part in parts)

    def sketch(self) -> Sketch:
        """Return the sketch of question and options, which does not depend on the options' order."""
        return sketch([self.question, *sorted(set(self.options))])


def question_of(doc: Mapping[str, Any], prompt: str, options: Sequence[str] = ()) -> Question:
    """Return a document's question, from its own fields where they have question and options, else from its prompt.

    Args:
        doc: The document.
        prompt: As the task renders it, options included or not.
        options: What is scored after the prompt, for documents without fields.
    """
    text = next((doc[name] for name in QUESTION if isinstance(doc.get(name), str)), "")
    choices = _choices(doc)
    if not text.strip() or not choices:
        # Tasks without a prompt, and those whose options are whole prompts, are told apart by their options.
        text = prompt if prompt.strip() else "\n".join(options)
        return Question(text, normalized(text), tuple(map(normalized, options)))
    shown = (text, *choices)
    passages = [value for value in doc.values() if isinstance(value, str) and len(value) >= PASSAGE]
    if passages:
        all_shown, asked = normalized(prompt), normalized("\n".join(shown))
        found = [letters for letters in map(normalized, passages) if len(letters) >= PASSAGE]
        passages = [letters for letters in found if letters in all_shown and letters not in asked]
    return Question(text, "\n".join([normalized(text), *passages]), tuple(map(normalized, choices)))


def _choices(doc: Mapping[str, Any]) -> list[str]:
    found = doc.get("choices", doc.get("options"))
    if isinstance(found, Mapping):
        found = found.get("text")
    if found is None:
        found = [doc.get(name) for name in COLUMNS]
    return found if isinstance(found, list) and all(isinstance(choice, str) for choice in found) else []


def task_question(task: Any, doc: dict[str, Any]) -> Question:
    """Return the question that a harness task makes of a document.

    Raises:
        UserError: The task cannot render the document.
    """
    if _choices(doc) and not any(isinstance(value, str) and len(value) >= PASSAGE for value in doc.values()):
        return question_of(doc, "")
    with explained(task.task_name, doc):
        prompt, options = task.doc_to_text(doc), task.doc_to_choice(doc)
    return question_of(doc, prompt if isinstance(prompt, str) else "", list(map(str, options or ())))


def is_redrawn(task: Any) -> bool:
    """Return whether a task asks the same questions again, with right answers drawn anew."""
    return getattr(task.config, "custom_dataset", None) in REDRAWN


@dataclass(frozen=True)
class Marks:
    """Hold what a manifest keeps of the questions of a fit, from which their text cannot be read."""

    #: Of each question; see :meth:`Question.key`.
    keys: list[str]
    #: All sketches, one after the other, in base64.
    sketches: str

    @classmethod
    def of(cls, questions: Iterable[Question]) -> Marks:
        """Return the marks of some questions."""
        found = list(questions)
        sketches = b"".join(question.sketch().tobytes() for question in found)
        return cls([question.key(ordered=True) for question in found], base64.b64encode(sketches).decode())


@dataclass(frozen=True)
class Seen:
    """Hold the marks of all questions that an artifact was fitted on, ready to be asked for."""

    #: Hashes of whole prompts, in artifacts of version 0.1.0.
    prompts: frozenset[str]
    questions: frozenset[str]
    #: Of questions with their options, and with the options' order too.
    keys: frozenset[str]
    #: Shape (N, BYTES).
    sketches: Sketch

    @classmethod
    def of(cls, keys: Sequence[Sequence[str]], sketches: Sequence[str], where: object) -> Seen:
        """Return the marks of a manifest.

        Args:
            keys: Of each role.
            sketches: Of each role.
            where: The artifact, for the message.

        Raises:
            UserError: The sketches are damaged.
        """
        ordered = {key for role in keys for key in role}
        parts = [key.split("-") for key in ordered]
        try:
            data = b"".join(base64.b64decode(text, validate=True) for text in sketches)
            array = np.asfortranarray(np.frombuffer(data, np.uint8).reshape(-1, BYTES))
        except ValueError as error:
            raise UserError(f"the sketches of {where} are damaged ({error}); copy or fit the artifact again") from error
        return cls(
            prompts=frozenset(key for key in ordered if "-" not in key),
            questions=frozenset(part[0] for part in parts if len(part) == 3),
            keys=frozenset(ordered | {"-".join(part[:2]) for part in parts if len(part) == 3}),
            sketches=array,
        )

    def same(self, task: Any, doc: dict[str, Any], question: Question) -> bool:
        """Return whether the fit has used this question with the same options."""
        if self.prompts and document_hash(question_text(task, doc)) in self.prompts:
            return True
        return question.key(is_redrawn(task)) in self.keys

    def same_question(self, question: Question) -> bool:
        """Return whether the fit has used this question, with these options or others."""
        return question.key().partition("-")[0] in self.questions

    def near(self, question: Question) -> bool:
        """Return whether the fit has used a near copy of this question."""
        return bool(len(self.sketches)) and bool(similarity(question.sketch(), self.sketches).max() >= NEAR)
