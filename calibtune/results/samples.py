"""Read the files that lm_eval writes with ``--log_samples`` as arrays."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibtune.errors import UserError
from calibtune.files import read_json
from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import validate_rows
from harness_ext.ragged import ragged
from harness_ext.sanity import check_scored, check_told_apart, warn_of_ties

#: Name that lm_eval gives a samples file: task, then the time of the run.
FILE_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T[\d.\-:]+)\.jsonl")


@dataclass(frozen=True)
class Samples:
    """Hold the questions of a samples file in the order of ``doc_id``."""

    task: str
    #: Filter whose rows were read; all filters have the same raw log-probabilities.
    filter: str
    path: Path
    #: Raw log-probabilities of the letters (lm_eval's log-likelihoods), shape (N, K), NaN where the letter is absent.
    #: They do not sum to 1 over the letters.
    log_probs: FloatArray
    #: Index of the right letter, shape (N,).
    labels: IntArray
    #: lm_eval's hash of each document, the same for every model.
    doc_hashes: tuple[str, ...] = field(repr=False)
    #: lm_eval's hash of each prompt as the model saw it, or None if the file has none.
    prompt_hashes: tuple[str | None, ...] = field(repr=False)
    #: The documents.
    documents: tuple[dict[str, Any], ...] = field(repr=False)
    #: Temperature of each filter whose temperature can be inferred.
    temperatures: dict[str, float]


def find_samples(path: Path) -> list[Path]:
    """Return a samples file itself, or the newest one of each task and folder below a folder.

    Raises:
        UserError: The path does not exist, or the folder has no samples files.
    """
    if path.is_file():
        return [path]
    newest: dict[tuple[Path, str], Path] = {}
    for file in sorted(path.rglob("samples_*.jsonl")):
        if match := FILE_NAME.fullmatch(file.name):
            newest[file.parent, match["task"]] = file
    if not path.exists():
        raise UserError(f"{path} does not exist; give a samples file of lm_eval or its output folder")
    if not newest:
        raise UserError(f"{path} has no samples_*.jsonl; run lm_eval with --log_samples --output_path {path}")
    return list(newest.values())


def read_samples(path: Path) -> Samples:
    """Read a samples file of a multiple-choice task.

    If the folder has the run's ``results_<date>.json``, it is used to check that no question is
    missing.

    Args:
        path: ``samples_<task>_<date>.jsonl``.

    Returns:
        The questions of the file.

    Raises:
        UserError: A line is damaged; questions are missing, repeated or from another task; a
            question has no log-likelihoods or no right answer; or the backend gave all letters the
            same log-likelihood. The message names the line or question and the value.
    """
    samples = _parse(path)
    first = str(samples[0].get("filter", "none"))
    chosen = sorted((s for s in samples if str(s.get("filter", "none")) == first), key=lambda s: s["doc_id"])
    _check_complete(path, [s["doc_id"] for s in chosen], samples)
    values = [_loglikelihoods(path, s) for s in chosen]
    log_probs = ragged(values)
    labels = np.array([_gold(path, s, len(letters)) for s, letters in zip(chosen, values, strict=True)])
    # Win rates' samples hold whole responses, with token counts beside the log-likelihoods.
    of_letters = all(len(response[0]) <= 2 for s in chosen for response in s["resps"] if isinstance(response[0], list))
    try:
        validate_rows(log_probs, labels)
        if of_letters:
            check_scored(log_probs)
        check_told_apart(log_probs)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if of_letters:
        warn_of_ties(log_probs, str(path))
    match = FILE_NAME.fullmatch(path.name)
    return Samples(
        task=match["task"] if match else path.stem,
        filter=first,
        path=path,
        log_probs=log_probs,
        labels=labels,
        doc_hashes=tuple(str(s.get("doc_hash")) for s in chosen),
        prompt_hashes=tuple(s.get("prompt_hash") for s in chosen),
        documents=tuple(s["doc"] for s in chosen),
        temperatures=_temperatures(samples),
    )


def read_prompts(path: Path) -> list[tuple[str, list[str]]]:
    """Return the prompt of each question of a samples file as the model saw it, and what was scored after it.

    In the order of :func:`read_samples`; empty texts where the file does not say them.

    Raises:
        UserError: See :func:`read_samples`.
    """
    found = {}
    for sample in _parse(path):
        arguments = sample.get("arguments")
        given = [each for each in arguments.values() if isinstance(each, dict)] if isinstance(arguments, dict) else []
        prompt = str(given[0].get("arg_0", "")) if given else ""
        found[sample["doc_id"]] = prompt, [str(each.get("arg_1", "")) for each in given]
    return [found[number] for number in sorted(found)]


def _parse(path: Path) -> list[dict[str, Any]]:
    samples = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                try:
                    sample = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: not a whole JSON object ({error.msg}); the file is cut off or "
                        "damaged, run the evaluation again"
                    ) from None
                if not _is_sample(sample):
                    raise UserError(
                        f"{path}, line {number}: not a sample of lm_eval (doc_id, doc and resps, a number, an object "
                        f"and a list), but {line.strip()!r:.80}; give a file that --log_samples wrote"
                    )
                samples.append(sample)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a samples file of lm_eval") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; give a samples file of lm_eval") from None
    if not samples:
        raise UserError(f"{path} is empty; run the evaluation again with --log_samples")
    return samples


def _is_sample(sample: Any) -> bool:
    if not isinstance(sample, dict):
        return False
    types = {"doc_id": int, "doc": dict, "resps": list}
    return all(isinstance(sample.get(key), kind) for key, kind in types.items())


def _check_complete(path: Path, doc_ids: list[int], samples: list[dict[str, Any]]) -> None:
    doubled = [a for a, b in itertools.pairwise(doc_ids) if a == b]
    if doubled:
        raise UserError(
            f"{path}: question {doubled[0]} occurs twice, as if two runs were joined; give the file of one run"
        )
    expected = _expected(path)
    # With `--limit` the questions are the first ones, so a gap means lost rows. With `--samples`
    # they can be any, so only the results file tells.
    if expected is None and doc_ids != list(range(len(doc_ids))):
        gap = next(i for i, doc_id in enumerate(doc_ids) if i != doc_id)
        raise UserError(f"{path}: question {gap} is missing; rows were removed, run the evaluation again")
    if expected is None:
        return
    count, digest = expected
    if len(doc_ids) != count:
        missing = sorted(set(range(count)) - set(doc_ids))[:5]
        raise UserError(
            f"{path} has {len(doc_ids)} questions, but the run's results file counts {count} (missing: {missing}); "
            "rows were removed or the file is from another task, so run the evaluation again"
        )
    hashes = "".join(str(s.get(key)) for s in samples for key in ("doc_hash", "prompt_hash", "target_hash"))
    if digest and digest != hashlib.sha256(hashes.encode()).hexdigest():
        raise UserError(
            f"{path}: its questions are not those of the run's results file (their hash differs); rows were changed "
            "or the file is from another task, so run the evaluation again"
        )


def _expected(path: Path) -> tuple[int, str | None] | None:
    """Return the number of questions and their common hash from the run's results file, or None."""
    match = FILE_NAME.fullmatch(path.name)
    results = path.parent / f"results_{match['date']}.json" if match else None
    if not match or results is None or not results.is_file():
        return None
    try:
        run = read_json(results)
    except UserError as error:
        raise UserError(f"{path}: the run's results file is damaged: {error}") from None
    counts = run.get("n-samples") if isinstance(run, dict) else None
    if not isinstance(counts, dict):
        raise UserError(f"{path}: the run's results file counts no questions ({results}); run the evaluation again")
    if match["task"] not in counts:
        raise UserError(
            f"{path}: the run's results file has no task {match['task']!r}, only {sorted(counts)}; give the file its "
            "original name"
        )
    count, hashes = counts[match["task"]], run.get("task_hashes") or {}
    effective = count.get("effective") if isinstance(count, dict) else None
    if not isinstance(effective, int) or not isinstance(hashes, dict):
        raise UserError(
            f"{path}: the run's results file is damaged: n-samples of {match['task']} is {count!r:.80} and task_hashes "
            f"{hashes!r:.80} in {results}; run the evaluation again"
        )
    return effective, hashes.get(match["task"])


def _loglikelihoods(path: Path, sample: dict[str, Any]) -> list[float]:
    values = []
    for response in sample["resps"]:
        answer = response[0] if isinstance(response, list) and response else response
        value = answer[0] if isinstance(answer, list) and answer else None
        value = float(value) if isinstance(value, str) and _is_number(value) else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(
                f"{path}, question {sample['doc_id']}: {response!r:.80} is not a finite log-likelihood; "
                "give the samples of a multiple-choice task"
            )
        values.append(float(value))
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _gold(path: Path, sample: dict[str, Any], letters: int) -> int:
    target = sample.get("target")
    if isinstance(target, str) and target.strip().isdecimal():
        target = int(target)
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < letters:
        raise UserError(
            f"{path}, question {sample['doc_id']}: the right answer is {target!r}, not the index of one of its "
            f"{letters} options; give the samples of a multiple-choice task with labels"
        )
    return target


def _temperatures(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Infer T of each ``letter_softmax`` filter from raw and scaled log-likelihoods."""
    temperatures: dict[str, float] = {}
    for sample in samples:
        name = str(sample.get("filter", "none"))
        if name in temperatures:
            continue
        letters = sample.get("filtered_resps") or []
        # Other filters can have triples too, such as log-likelihood, flag and token count.
        ours = all(isinstance(x, list) and len(x) == 3 and all(_is_number(str(v)) for v in x) for x in letters)
        if not letters or not ours:
            continue
        raw, scaled = [float(x[2]) for x in letters], [float(x[1]) for x in letters]
        spread = max(scaled) - min(scaled)
        if spread > 1e-6:
            temperatures[name] = round((max(raw) - min(raw)) / spread, 9)
    return temperatures
