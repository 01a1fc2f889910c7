"""Is the harness set up, are a model's letters single tokens in a task's prompt, does it give letters at all?"""

from __future__ import annotations

import contextlib
import importlib.metadata
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.tasks import TaskManager

from calibtune.data.tasks import installed_folder
from harness_ext.task import LetterTask

if TYPE_CHECKING:
    from calibtune.data.encoder import Encoder
    from calibtune.data.examples import LetterExample
    from calibtune.spec import ModelSpec

#: For templates like Qwen3's.
THINKING = "--chat-template-args '{\"enable_thinking\": false}'"
#: Letter mass below which confidence among the letters says little about what the model would write.
MASS = 0.5
#: Questions whose letters are looked at, and scored, for each task.
LOOKED_AT, SCORED = 200, 32


@dataclass(frozen=True)
class Finding:
    """Hold the outcome of one check."""

    good: bool
    text: str

    def line(self) -> str:
        """Return the line that the user sees."""
        return f"[{'ok' if self.good else 'NOT OK'}] {self.text}"


def shipped_folder() -> Path | None:
    """Where this distribution's task files lie, whether or not the harness sees them."""
    candidates = [Path(__file__).parents[2] / "lm_eval_tasks"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        candidates.append(Path(str(importlib.metadata.distribution("calibtune").locate_file("lm_eval/tasks/mc_calib"))))
    return next((path for path in candidates if (path / "mc_calib_arc.yaml").is_file()), None)


def check_installation() -> list[Finding]:
    """Is lm_eval a version that was tried, and does it see every task file of ours?"""
    version = importlib.metadata.version("lm_eval")
    good = (0, 4, 13) <= tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < (0, 6)
    findings = [Finding(good, f"lm_eval {version}" + ("" if good else "; install lm_eval>=0.4.13,<0.6"))]
    shipped, folder = shipped_folder(), installed_folder()
    if shipped is None:
        return [*findings, Finding(False, "this installation of calibtune has no task files; install it again")]
    wanted = set(TaskManager(include_path=str(shipped), include_defaults=False).all_tasks)
    seen = set(TaskManager(include_path=str(folder), include_defaults=False).all_tasks) if folder.is_dir() else set()
    missing = sorted(wanted - seen)
    if missing:
        findings.append(
            Finding(
                False,
                f"the harness in {folder.parents[1]} does not see {len(missing)} of {len(wanted)} tasks, such as "
                f"{missing[0]}; add --include_path {shipped} to lm_eval's command, or install calibtune beside it",
            )
        )
    else:
        findings.append(Finding(True, f"the harness sees all {len(wanted)} tasks and groups in {folder}"))
    return findings


def check_letters(task: Any, encoder: Any, chat: bool, count: int = LOOKED_AT) -> list[Finding]:
    """Are the letters distinct single tokens in this task's rendered prompts?

    Args:
        task: A multiple-choice task of the harness.
        encoder: Of the model's tokenizer.
        chat: Render as chat.
        count: Questions to look at.
    """
    from calibtune.data.examples import Prompts
    from calibtune.data.tokens import letter_ids
    from calibtune.errors import UserError

    prompts = Prompts(task, encoder, chat)
    docs = list(islice(task.eval_docs, count))
    examples = [prompts.example(doc) for doc in docs]
    try:
        with encoder.ahead((example.context, letter) for example in examples for letter in example.letters):
            found = {(example.letters, letter_ids(example, encoder)) for example in examples}
    except UserError as error:
        return [Finding(False, str(error))]
    letters, (shared, tokens) = max(found, key=lambda item: len(item[0]))
    shown = ", ".join(f"{letter!r}={token}" for letter, token in zip(letters, tokens, strict=True))
    text = f"{task.task_name}: letters are single tokens of their own in {len(docs)} prompts: {shown}"
    findings = [Finding(True, f"{text}; the prompt ends {examples[0].context[-40:]!r}")]
    if shared:
        findings.append(Finding(True, f"{task.task_name}: all letters begin with the tokens {list(shared)}"))
    return [*findings, *_check_beginning(task, examples[0], encoder), *_check_harness(task, examples[0], encoder)]


def _check_beginning(task: Any, example: LetterExample, encoder: Encoder) -> list[Finding]:
    """Point at a beginning-of-text token that the tokenizer has and does not use; some models need it."""
    tokenizer = encoder.tokenizer
    if tokenizer.bos_token_id in (None, encoder.encode(example.context, example.letters[0])[0][0]):
        return []
    text = f"prompts begin without {tokenizer.bos_token!r}, as the tokenizer does it; --add-bos-token puts it there"
    return [Finding(True, f"{task.task_name}: {text}")]


def _check_harness(task: Any, example: LetterExample, encoder: Encoder) -> list[Finding]:
    """Check that the harness feeds the tokens of the whole prompt? Nothing is said where it does."""
    context, letters = encoder.encode(example.context, example.letters[0])
    their_context, their_letters = encoder.encode_as_harness(example.context, example.letters[0])
    if context == their_context:
        return []
    end = example.context[len(example.context.rstrip()) :]
    if context + letters == their_context + their_letters:
        text = f"the harness alone scores the prompt's last {end!r} with each letter, which lowers letter mass"
        return [Finding(True, f"{task.task_name}: {text}; calibtune and its tasks feed it like the prompt")]
    shown = encoder.tokenizer.convert_ids_to_tokens(context[-2:])
    text = f"the harness alone loses {end!r} at the prompt's end, whose last tokens are {shown}"
    if isinstance(task, LetterTask):
        return [Finding(True, f"{task.task_name}: {text}; our tasks have it feed the whole prompt")]
    return [
        Finding(False, f"{task.task_name}: {text}; evaluate this task with `python -m calibtune eval`, not lm_eval")
    ]


def other_prompt(tokenizer: Any, spec: ModelSpec) -> str:
    """Return how else a model can be prompted, for one that does not answer with letters."""
    if not spec.apply_chat_template:
        return "with --apply-chat-template, if it is a chat model"
    thinks = "enable_thinking" in str(tokenizer.chat_template)
    if thinks and "enable_thinking" not in spec.chat_template_args:
        return f"with {THINKING}, since its template lets it think before it answers"
    return "without --apply-chat-template"


def check_mass(task_name: str, mass: float, questions: int, other: str) -> Finding:
    """Check how much probability the model gives to the letters at all.

    Args:
        task_name: Of the task.
        mass: See :func:`harness_ext.calibration.letter_mass`.
        questions: It is a mean over so many.
        other: See :func:`other_prompt`.
    """
    text = f"{task_name}: letter mass {mass:.3f} on {questions} questions"
    if mass >= MASS:
        return Finding(True, text)
    shots = "few-shot examples (--num-fewshot 5; --num_fewshot 5 in lm_eval)"
    return Finding(False, f"{text}: the model mostly writes something else; try {other}, or {shots}")
