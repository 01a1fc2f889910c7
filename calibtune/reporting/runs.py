"""Find the runs of lm_eval in a folder: their models, tasks, settings and samples files."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import Required, TypedDict

from calibtune.errors import UserError
from calibtune.reading import MOST_LISTED, Record, Share, checked, read_json
from calibtune.results.records import FILE_NAME, is_dated, model_args, model_of
from calibtune.results.schema import AGAIN, Results
from calibtune.results.shards import shard_of, together, whole_of
from harness_ext.orders import SUFFIX as ORDERS
from harness_ext.orders import count_of

#: Name of a results file: ``results`` or the stem of an ``--output_path`` that ends in .json, then
#: the time of the run.
RESULTS_NAME = re.compile(r".+_(?P<date>\d{4}-\d{2}-\d{2}T[\d.\-:]+)\.json")
#: Defaults of lm_eval's ``model_args``, as text.
DEFAULTS = {"dtype": "auto", "revision": "main", "trust_remote_code": "False", "peft": "None"}
WIN_TASK = "ultrafeedback_winrate"
#: Suffix of the task that evaluates a fitted temperature.
SCALED = "_scaled"


class Made(Record):
    """Hold what a manifest, of whichever version, says of a fit."""

    method: str | None = None
    seed: int | None = None


class Fitted(Record):
    """Hold a ``temperature.json``, as far as it is read."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class WinRecord(TypedDict, total=False):
    """Describe a ``winrate_*.json``, as far as it is read."""

    win_rate: Required[Share]
    low: Share | None
    high: Share | None
    n: Annotated[int, Field(ge=0, lt=2**63)] | None
    benchmark: str | None
    baseline: str | None
    model: str | None
    note: str | None


@dataclass
class Run:
    """Describe a model, with or without adapter, and its evaluations in one folder."""

    #: The folder that the user gave.
    source: Path
    #: The folder with the files, in or below ``source``.
    folder: Path
    #: lm_eval's ``model_args``; empty if the results file is missing.
    model_args: dict[str, Any]
    #: Other settings of the evaluation, as text ("chat template").
    settings: tuple[str, ...]
    #: Time of the first evaluation, as lm_eval writes it.
    date: str
    #: Label in the report; set by :mod:`calibtune.reporting.labels`.
    label: str = ""
    #: Samples file of each task, or those of its shards.
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    #: lm_eval's results of each task.
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Tasks of each group.
    groups: dict[str, list[str]] = field(default_factory=dict)
    #: Whether its prompts hold the day on which it ran.
    dated: bool = False
    #: Number of few-shot examples of each task.
    shots: dict[str, int] = field(default_factory=dict)
    #: ``output_type`` of each task, if the results file has it.
    kinds: dict[str, str] = field(default_factory=dict)
    #: How many questions of each task were asked, and how many it has, where they differ (``--limit``, a shard).
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Number of the model's parameters, if the results file has it.
    size: int | None = None
    #: Folders of this run alone, whose temperature and manifest therefore belong to it.
    own: tuple[Path, ...] = ()
    #: What the shards of a run have in common; empty if this is no shard.
    whole: str = ""
    #: Contents of ``winrate_*.json`` files, and which they are.
    win_records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> str:
        """Return hub id or folder of the base model."""
        return model_of(self.model_args)[0] or self.folder.name

    @property
    def adapter(self) -> str | None:
        """Return the folder of the adapter, or None."""
        return model_of(self.model_args)[1]

    def given_args(self) -> dict[str, Any]:
        """Return lm_eval's ``model_args`` without those that only spell out a default."""
        return {key: value for key, value in self.model_args.items() if str(value) != DEFAULTS.get(key)}

    def made(self) -> Made:
        """Return what the manifest of the adapter, model or run says; nothing if there is none.

        Raises:
            UserError: The manifest cannot be read.
        """
        for folder in (self.adapter, self.model, *self.own):
            if folder and os.path.isfile(path := Path(folder) / "calibtune.json"):
                return read_json(path, Made, "fit again", MOST_LISTED)
        return Made()

    def fitted_temperature(self) -> tuple[float, Path] | None:
        """Return T and path of a ``temperature.json`` in the run's folders, or None.

        The model's folder is not searched, because a baked model's logits are already scaled.

        Raises:
            UserError: ``temperature`` in the file is not a finite number above 0.
        """
        for folder in self.own:
            if os.path.isfile(path := folder / "temperature.json"):
                return read_json(path, Fitted, "fit it again").temperature, path
        return None


def evaluations(folder: Path) -> list[Path]:
    """Return the evaluations in an output folder of ``reproduce`` or ``demo``; other folders stand for themselves."""
    inside = folder / "evaluations"
    found = sorted(each for each in inside.iterdir() if each.is_dir()) if inside.is_dir() else []
    return found or [folder]


def find_runs(folder: Path) -> list[Run]:
    """Return all runs in a folder and its subfolders, in the order of their first evaluation.

    Files are of the same run if they are in the same folder and have the same model_args, chat
    template, system instruction, orders of the options and number of few-shot examples. If a task was
    evaluated twice, the newer files are used.

    Args:
        folder: The ``--output_path`` of lm_eval, a subfolder or a parent folder.

    Returns:
        At least one run with samples or win rates.

    Raises:
        UserError: The folder does not exist or has no samples.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        words = f"--log_samples --output_path {shlex.quote(str(folder))}"
        raise UserError(f"{folder} {what}; give a folder that lm_eval wrote with {words}")
    runs: dict[tuple[Path, str], Run] = {}
    results = _results_files(folder)
    samples = _samples_files(folder)
    for place, date in sorted({*results, *samples}, key=lambda item: (item[1], item[0])):
        record, files = results.get((place, date), {}), samples.get((place, date), {})
        for words, part, its_files in _by_orders(record, files):
            _add(_run_of(runs, folder, place, date, part, words), part, its_files)
    for path in sorted(folder.rglob("winrate_*.json")):
        _add_win_record(runs, folder, path)
    found = [run for run in runs.values() if run.files or run.win_records or WIN_TASK in run.results]
    if not found:
        raise UserError(
            f"{folder} has {'results files but ' if results else ''}no samples_*.jsonl; "
            f"run lm_eval again with --log_samples --output_path {shlex.quote(str(folder))}"
        )
    for run in found:
        shared = sum(other.folder == run.folder for other in found) > 1
        run.own = (*(() if shared else (run.folder,)), *((folder,) if len(found) == 1 else ()))
    return found


def join_shards(runs: Sequence[Run]) -> list[Run]:
    """Make one run of all shards of a run (``eval --shard``), in the place of the first.

    The numbers of their results files are those of a part, and are left out.

    Raises:
        UserError: A shard is missing or there twice.
    """
    joined: dict[str, Run] = {}
    for number, run in enumerate(runs):
        first = joined.setdefault(run.whole or str(number), run)
        if run is not first:
            first.groups |= run.groups
            first.shots |= run.shots
            first.kinds |= run.kinds
            first.own += run.own
            for task, (asked, count) in run.cut.items():
                first.cut[task] = asked + first.cut.get(task, (0, count))[0], count
    for whole, run in joined.items():
        if run.whole:
            run.cut = {task: (asked, count) for task, (asked, count) in run.cut.items() if asked < count}
            tasks = {file: task for part in runs if part.whole == whole for task, (file,) in part.files.items()}
            run.files = {tasks[shards[0]]: shards for shards in together(tasks)}
            run.results = {}
    return list(joined.values())


def merge_runs(runs: Sequence[Run]) -> list[Run]:
    """Merge runs of the same model from different folders if they gave the same answers to the tasks in common.

    A model's scaled tasks or win rates are often evaluated later, into another folder.
    """
    merged: list[Run] = []
    for run in runs:
        same = next((other for other in merged if _joinable(other, run)), None)
        if same is None:
            merged.append(run)
            continue
        for name in ("files", "results", "groups", "shots", "kinds", "cut"):
            setattr(same, name, {**getattr(same, name), **getattr(run, name)})
        same.win_records += run.win_records
        same.own += run.own
    return merged


def _joinable(a: Run, b: Run) -> bool:
    alike = a.given_args() == b.given_args() and a.settings == b.settings
    if not (a.files and b.files):
        # A win-rate file names the model but none of its settings.
        names = {record.get("model") for run in (a, b) for record in run.win_records}
        alike = alike or (a.model, a.adapter) == (b.model, b.adapter) or bool({a.adapter, b.adapter} & names - {None})
    return alike and all(_same_files(a.files[task], b.files[task]) for task in a.files.keys() & b.files.keys())


def _same_files(a: Sequence[Path], b: Sequence[Path]) -> bool:
    return len(a) == len(b) and all(filecmp.cmp(x, y, shallow=False) for x, y in zip(a, b, strict=True))


def _results_files(folder: Path) -> dict[tuple[Path, str], dict[str, Any]]:
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if match := RESULTS_NAME.fullmatch(path.name):
            record = read_json(path)
            if isinstance(record, dict) and "results" in record:
                found[path.parent, match["date"]] = checked(record, Results, str(path), AGAIN)
    return found


def _samples_files(folder: Path) -> dict[tuple[Path, str], dict[str, Path]]:
    found: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        if match := FILE_NAME.fullmatch(path.name):
            found.setdefault((path.parent, match["date"]), {})[match["task"]] = path
    return found


def _by_orders(
    record: Mapping[str, Any], files: Mapping[str, Path]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Path]]]:
    """Split what was evaluated at one time by the orders of the options that its tasks ask in.

    A task ``X_orders`` asks the questions of X, so it gets that name, and its orders are a setting of the run.
    """
    configs, groups = record.get("configs") or {}, record.get("group_subtasks") or {}

    def words(name: str) -> str:
        if name in configs:
            metadata = configs[name].get("metadata")
            orders = metadata.get("orders", 1) if isinstance(metadata, dict) else 1
            return count_of(orders) if orders == "all" or (isinstance(orders, int) and orders > 1) else ""
        if name in groups:
            return next((words(member) for member in groups[name] or () if member in configs), "")
        return "several orders of the options" if name.removesuffix(SCALED).endswith(ORDERS) else ""

    def plain(name: str) -> str:
        return re.sub(f"{ORDERS}(?={SCALED}$|$)", "", name) if words(name) else name

    said = {name: words(name) for name in (*configs, *groups, *record.get("results", {}), *files)}
    for setting in sorted(set(said.values())) or [""]:
        part = dict(record)
        for key in ("results", "configs", "n-shot", "n-samples", "group_subtasks"):
            part[key] = {
                plain(name): each for name, each in (record.get(key) or {}).items() if said.get(name, "") == setting
            }
        part["group_subtasks"] = {name: list(map(plain, each or ())) for name, each in part["group_subtasks"].items()}
        yield setting, part, {plain(name): path for name, path in files.items() if said[name] == setting}


def _run_of(
    runs: dict[tuple[Path, str], Run], source: Path, place: Path, date: str, record: Mapping[str, Any], orders: str
) -> Run:
    args = model_args(record)
    settings = (*_settings(record), *([orders] if orders else []))
    shots = record.get("n-shot") or {}
    shard = shard_of(record)
    key = place, json.dumps([args, settings, str(shard)], sort_keys=True, default=str)
    if key in runs and any(runs[key].shots.get(task, count) != count for task, count in shots.items()):
        # The same task with another number of examples is another run, not a newer evaluation.
        settings = (*settings, "/".join(sorted({str(count) for count in shots.values()})) + "-shot")
        key = place, json.dumps([args, settings, str(shard)], sort_keys=True, default=str)
    # What a shard's record says is of all its tasks, whatever orders of the options they ask in.
    whole = f"{whole_of(record)} {orders}" if shard else ""
    return runs.setdefault(key, Run(source, place, args, settings, date, whole=whole))


def _settings(record: Mapping[str, Any]) -> tuple[str, ...]:
    instruction = f"system instruction {str(record.get('system_instruction_sha'))[:6]}"
    return (
        *(["chat template"] if record.get("chat_template_sha") else []),
        *([instruction] if record.get("system_instruction") else []),
    )


def _add(run: Run, record: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    run.files.update({task: (path,) for task, path in files.items()})
    run.dated = run.dated or is_dated(record)
    run.results.update(record.get("results", {}))
    run.shots.update(record.get("n-shot") or {})
    for task, counts in (record.get("n-samples") or {}).items():
        # A newer evaluation can ask more.
        run.cut.pop(task, None)
        if counts["effective"] < (counts.get("original") or 0):
            run.cut[task] = counts["effective"], counts["original"]
    size = (record.get("config") or {}).get("model_num_parameters")
    run.size = int(size) if isinstance(size, float) and 0 < size < 1e15 else run.size
    for group, tasks in (record.get("group_subtasks") or {}).items():
        if tasks:
            run.groups[group] = list(tasks)
    for task, config in (record.get("configs") or {}).items():
        if kind := config.get("output_type"):
            run.kinds[task] = kind


def _add_win_record(runs: dict[tuple[Path, str], Run], source: Path, path: Path) -> None:
    record = read_json(path, WinRecord, "write it again with `python -m calibtune winrate`")
    near = [run for run in runs.values() if path.parent in (run.folder, *run.folder.parents)]
    if not near:
        name = str(record.get("model") or path.parent.name)
        near = [Run(source, path.parent, {"pretrained": name}, (), "")]
        runs[path.parent, path.name] = near[0]
    near[0].win_records.append({**record, "file": str(path)})
