"""Find and load the harness's tasks, and read their documents."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from calibtune.errors import UserError, reason


def installed_folder() -> Path:
    """Return the folder in which the harness finds our tasks; it is missing where calibtune lies elsewhere."""
    return Path(lm_eval.__file__).parent / "tasks" / "mc_calib"


def installed_tasks() -> dict[str, Path]:
    """Return the files of our letter tasks by name; MMLU's single subjects and groups are left out."""
    found = {}
    for path in sorted(installed_folder().glob("mc_calib*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "task: mc_calib" in text and "group:" not in text:
            found[path.stem] = path
    return found


class Index(TaskManager):
    """Load tasks by the harness's index, the same names once: what is checked is what is evaluated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._loaded: dict[tuple[str, ...], Any] = {}
        self._added: dict[str, Any] = {}

    def load(self, task_list: Any) -> Any:
        """Return tasks and groups by name, as the harness does."""
        names = tuple(task_list) if isinstance(task_list, (list, tuple)) else (task_list,)
        if not all(isinstance(name, str) for name in names):
            return super().load(task_list)
        if names not in self._loaded:
            loaded = super().load([name for name in names if name not in self._added])
            loaded["tasks"] |= {name: self._added[name] for name in names if name in self._added}
            self._loaded[names] = loaded
        return self._loaded[names]

    def add(self, task: Any) -> None:
        """Add a task that no YAML describes."""
        self._added[task.task_name] = task

    def change(self, names: Sequence[str], change: Callable[[Any], Any]) -> dict[str, str]:
        """Have :meth:`load` return changed tasks for these names, in their groups too.

        Args:
            names: As they are given to :meth:`load`.
            change: Called with each task; returns the one to take its place.

        Returns:
            The new name of each task.
        """
        loaded = self.load(list(names))
        changed = {name: change(task) for name, task in loaded["tasks"].items()}
        for group in loaded["groups"].values():
            for name in group.child_names:
                # Taken out and put back, all of them, so that their order stays.
                child = group.pop(name)
                group.add(changed.get(name, child))
        loaded["tasks"] = {task.task_name: task for task in changed.values()}
        loaded["group_map"] = {group.name: group.child_names for group in loaded["groups"].values()}
        return {name: task.task_name for name, task in changed.items()}


def task_manager(names: Sequence[str], include_path: str | None = None) -> Index:
    """Return the harness's index of tasks: of ours alone where that suffices, since the full one takes ten seconds.

    Args:
        names: Task or group names that must be in it.
        include_path: Folder of further YAMLs.

    Raises:
        UserError: A name is unknown, with close ones; or there is no such folder.
    """
    if include_path and not Path(include_path).is_dir():
        raise UserError(f"--include-path {include_path} is no folder; give one that holds task YAMLs")
    own = installed_folder()
    paths: list[str | Path] = [*([own] if own.is_dir() else []), *([include_path] if include_path else [])]
    manager = Index(include_path=paths, include_defaults=False)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        for name in unknown:
            check_yaml(name, include_path)
        manager = Index(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, 3)
            hint = f"; did you mean {', '.join(close)}?" if close else ";"
            raise UserError(
                f"the harness knows no task {name!r}{hint} run `lm_eval ls tasks` for all, or give --include-path"
            )
    return manager


def check_yaml(name: str, folder: str | None) -> None:
    """Say why the harness does not know a task that a YAML in the folder describes; it leaves out what it cannot read.

    Raises:
        UserError: With the file and the cause.
    """
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.stem != name and not re.search(rf"^(task|group): *['\"]?{re.escape(name)}\b", text, re.MULTILINE):
            continue
        try:
            load_yaml(path, resolve_func=False)
        except FileNotFoundError as error:
            letters = Path(str(error.filename)).name == "_letters"
            ours = "write `class: !function harness_ext.task.LetterTask` in place of the include"
            cure = ours if letters else "name a file by its path from this one"
            raise UserError(f"{path} includes {error.filename}, which does not exist; {cure}") from error
        except Exception as error:  # YAML's constructors raise whatever comes
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {reason(error)}); mend it") from error


def load_tasks(names: Sequence[str], include_path: str | None = None, index: Index | None = None) -> list[Any]:
    """Load tasks by name as the harness does, groups opened.

    Args:
        names: Task or group names.
        include_path: Folder of further YAMLs.
        index: Where to look them up; None: in a new one.

    Raises:
        UserError: A name is unknown, or a task's YAML, code or data set cannot be loaded.
    """
    manager = index or task_manager(names, include_path)
    with explained(", ".join(names)):
        tasks = list(manager.load(list(names))["tasks"].values())
        for task in tasks:
            # lm_eval 0.5 loads a data set when it is first asked for.
            task.dataset  # noqa: B018
    return tasks


def training_documents(task: Any) -> list[dict[str, Any]]:
    """Return a task's training documents, or its validation ones where it has none and evaluates others.

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


@contextlib.contextmanager
def explained(task: str, doc: Any = None) -> Iterator[None]:
    """Raise one sentence for whatever a task's YAML, its code, `datasets` or Jinja raise.

    Args:
        task: The task's name.
        doc: The row that is being rendered, where there is one.

    Raises:
        UserError: With the task, the row, the error and its cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # `datasets` says what is wrong with a file in the cause alone.
        causes = [error, *filter(None, [error.__cause__])]
        said = ", from ".join(f"{type(e).__name__}: {reason(e)}" for e in causes)
        if doc is None:
            what, cure = f"task {task}", "mend its YAML, or make its data set readable from here"
        else:
            what, cure = f"task {task}, row {str(doc)[:80]!r},", "mend the row or the task's YAML"
        raise UserError(f"{what} cannot be used ({said}); {cure}") from error


def question_text(task: Any, doc: dict[str, Any]) -> str:
    """Render a document as its task does, options included and no few-shot examples: what its hash is taken of.

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
