"""Read and write Arena-Hard's files in a local checkout of its tool, which runs the judge.

DATA/question.jsonl                        uid, category, prompt
DATA/model_answer/NAME.jsonl               uid, ans_id, model, messages, tstamp
DATA/model_judgment/JUDGE/NAME.jsonl       uid, model, games: two verdicts, baseline and model shown first
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from calibtune.endpoints.journal import key_of
from calibtune.errors import UserError
from calibtune.files import write_text
from calibtune.reading import read_rows

#: Score of the answer shown first (A) and weight of each verdict; a clear verdict counts three
#: times, as in the tool's ``show_result.py``.
LABELS: dict[object, tuple[float, int]] = {
    **dict.fromkeys(("A>B", "B<A"), (1.0, 1)),
    **dict.fromkeys(("B>A", "A<B"), (0.0, 1)),
    **dict.fromkeys(("A>>B", "B<<A"), (1.0, 3)),
    **dict.fromkeys(("B>>A", "A<<B"), (0.0, 3)),
    **dict.fromkeys(("A=B", "B=A"), (0.5, 1)),
}
#: Baseline of v0.1, which older judgment files do not name.
BASELINE = "gpt-4-0314"
NOTE = (
    "95 % interval by bootstrap over questions (the tool resamples verdicts and prints 90 %); no style control (use "
    "the tool's show_result.py --control-features)"
)


class Question(TypedDict):
    """Describe a line of ``question.jsonl``."""

    uid: str | int
    prompt: str
    category: NotRequired[str | None]


class Answer(TypedDict):
    """Describe what a model wrote."""

    answer: str


class Message(TypedDict):
    """Describe a message of a conversation; only the model's has an answer."""

    content: Answer | str


class Answered(TypedDict):
    """Describe a line of a model's answers."""

    uid: str | int
    messages: Annotated[list[Message], Field(min_length=1)]


class Game(TypedDict):
    """Describe one of the two verdicts on a question."""

    score: NotRequired[str | None]


class Judgment(TypedDict):
    """Describe a line of a judge's verdicts."""

    games: Annotated[list[Game | None], Field(min_length=2, max_length=2)]
    uid: NotRequired[str | int | None]
    question_id: NotRequired[str | int | None]
    baseline: NotRequired[str | None]


@dataclass(frozen=True)
class Verdicts:
    """Hold the verdicts on one model."""

    model: str
    baseline: str
    judge: str
    #: The model's score on each question in [0, 1]: weighted mean over the verdicts of both games.
    scores: dict[str, float]
    #: Weight of each question, from 2 (two slight verdicts) to 6 (two clear ones).
    weights: dict[str, float]
    #: Judged questions without two verdicts, which the tool leaves out too.
    unjudged: tuple[str, ...]
    #: Questions that were not judged.
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """Hold the data folder of a benchmark version in a checkout, and its questions."""

    folder: Path
    #: Prompt of each question, in order.
    questions: dict[str, str]
    #: Category of each question.
    categories: dict[str, str]

    def answers(self, name: str) -> Path:
        """Return the path of a model's answers."""
        return self.folder / "model_answer" / f"{name}.jsonl"

    def judgments(self, name: str) -> dict[str, Path]:
        """Return a model's judgment files by judge."""
        return {path.parent.name: path for path in sorted(self.folder.glob(f"model_judgment/*/{name}.jsonl"))}


def open_bench(path: Path) -> Bench:
    """Find and read the questions in a checkout.

    Args:
        path: The checkout or its data folder (``data/arena-hard-v0.1``).

    Raises:
        UserError: There are no questions or several benchmark versions, or the file is damaged.
    """
    found = [path / "question.jsonl"] if (path / "question.jsonl").is_file() else []
    found = found or sorted([*path.glob("data/*/question.jsonl"), *path.glob("src/*/data/*/question.jsonl")])
    if not found:
        raise UserError(f"--bench {path} has no question.jsonl; give a checkout of arena-hard-auto or its data folder")
    if len(found) > 1:
        names = ", ".join(str(file.parent.relative_to(path)) for file in found)
        raise UserError(f"--bench {path} holds several benchmarks ({names}); give one of these folders")
    rows = read_rows(found[0], Question, "download it again")
    questions = {str(row["uid"]): str(row["prompt"]) for row in rows}
    if len(questions) != len(rows):
        raise UserError(f"{found[0]} has the same uid twice; download it again")
    categories = {str(row["uid"]): str(row.get("category", "")) for row in rows}
    return Bench(found[0].parent, questions, categories)


def write_answers(bench: Bench, name: str, outputs: Sequence[str]) -> Path:
    """Write a model's answers for the tool to judge.

    Args:
        bench: The benchmark.
        name: The model's name in the tool's configuration and tables.
        outputs: One answer for each question, in order.

    Returns:
        Path of the file. A file with the same answers is not written again.

    Raises:
        UserError: The file has other answers, or the name is not a file name.
    """
    if not name or Path(name).name != name:
        raise UserError(f"--name {name} cannot be a file name; give a name without slashes")
    path = bench.answers(name)
    answers = dict(zip(bench.questions, outputs, strict=True))
    if path.exists():
        kept = {str(row["uid"]): _answer(row, path) for row in read_rows(path, Answered, "remove the file")}
        if kept != answers:
            raise UserError(
                f"{path} holds other answers, which may be judged already; give another --name or remove it"
            )
        return path
    lines = []
    for uid, prompt in bench.questions.items():
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": answers[uid]}}]
        row = {
            "uid": uid,
            "ans_id": key_of([name, uid])[:22],
            "model": name,
            "messages": messages,
            "tstamp": time.time(),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    return path


def read_verdicts(bench: Bench, name: str, judge: str | None = None, category: str | None = None) -> Verdicts:
    """Read the verdicts on a model.

    Args:
        bench: The benchmark.
        name: The model's name.
        judge: The judge; required if several judges judged the model.
        category: Category of the questions; required if categories have different baselines.

    Raises:
        UserError: There are no judgments, several judges or baselines, or a damaged line.
    """
    judge, path = _judgment(bench, name, judge)
    wanted = [uid for uid in bench.questions if category in (None, bench.categories[uid])]
    if not wanted:
        raise UserError(f"--category {category} has no question; give one of {_categories(bench)}")
    scores, weights, unjudged, baselines = {}, {}, [], set()
    for where, uid, row in _rows(bench, path):
        if category not in (None, bench.categories[uid]):
            continue
        baselines.add(str(row.get("baseline") or BASELINE))
        found = _score(row["games"], where)
        if found is None:
            unjudged.append(uid)
        else:
            scores[uid], weights[uid] = found
    if len(baselines) != 1:
        said = f"compares with {', '.join(sorted(baselines))}" if baselines else f"has no judgment of {category}"
        raise UserError(f"{path} {said}; choose one --category of {_categories(bench)}")
    missing = tuple(uid for uid in wanted if uid not in scores and uid not in unjudged)
    return Verdicts(name, baselines.pop(), judge, scores, weights, tuple(unjudged), missing)


def _judgment(bench: Bench, name: str, judge: str | None) -> tuple[str, Path]:
    files = bench.judgments(name)
    if not files or (judge and judge not in files):
        raise UserError(
            f"{bench.folder}/model_judgment/{judge or '*'}/{name}.jsonl does not exist; judge the model with the "
            "tool's gen_judgment.py first"
        )
    if not judge and len(files) > 1:
        raise UserError(f"{name} was judged by {', '.join(files)}; choose one with --judge")
    judge = judge or next(iter(files))
    return judge, files[judge]


def _rows(bench: Bench, path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name for errors, question and row of each judgment."""
    seen = set()
    for number, row in enumerate(read_rows(path, Judgment, "give a file that the tool wrote")):
        uid = str(row.get("uid", row.get("question_id")))
        if uid not in bench.questions:
            raise UserError(
                f"{path}, entry {number}: question {uid} is not in question.jsonl; give judgments and questions of the "
                "same version"
            )
        if uid in seen:
            raise UserError(f"{path}: question {uid} is judged twice; keep one of its lines")
        seen.add(uid)
        yield f"{path}, entry {number}", uid, row


def _categories(bench: Bench) -> str:
    return ", ".join(sorted(set(bench.categories.values())))


def _score(games: Any, where: str) -> tuple[float, float] | None:
    """Return the model's score and weight; the baseline is shown first in the first game only."""
    labels = [game.get("score") if game else None for game in games]
    # The tool leaves out a question if either verdict is missing.
    if None in labels:
        return None
    for label in labels:
        if label not in LABELS:
            raise UserError(
                f"{where}: {label!r} is not a verdict of Arena-Hard ({', '.join(map(str, LABELS))}); judge it again"
            )
    (baseline_first, first_weight), (model_first, second_weight) = (LABELS[label] for label in labels)
    weight = first_weight + second_weight
    return ((1 - baseline_first) * first_weight + model_first * second_weight) / weight, float(weight)


def _answer(row: dict[str, Any], path: Path) -> str:
    content = row["messages"][-1]["content"]
    if isinstance(content, str):
        raise UserError(f"{path}: question {row['uid']} has no answer in the tool's format; remove the file")
    return str(content["answer"])
