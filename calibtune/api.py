"""The functions of ``import calibtune``: fit, evaluate, report, and read what they wrote. The commands call them too.

Errors name options as the command line does: ``--batch-size`` is ``batch_size`` here.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibtune.errors import UserError

if TYPE_CHECKING:
    from calibtune.artifacts.manifest import Artifact
    from calibtune.evaluation.evaluate import Evaluation
    from calibtune.mending.run import Mended
    from calibtune.recipe import Recipe
    from calibtune.results.samples import Samples
    from calibtune.spec import Precision, Quantization

    PathLike = str | os.PathLike[str]

#: Fewer samples files are not worth further processes, each of which takes a second to import what reads and draws.
MANY_FILES = 12


def fit(
    recipe: Recipe,
    output: PathLike,
    *,
    model: PathLike | None = None,
    tasks: str | Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Artifact:
    """Run a fit: train an adapter or fit a temperature.

    Args:
        recipe: What to fit, and how.
        output: The artifact's folder.
        model: Base model, hub id or folder; None: the recipe's.
        tasks: Harness tasks to fit on, a list or one text with commas; None: the recipe's.
        resume: Go on from the last whole checkpoint in ``output``.
        overwrite: Remove existing files in ``output``.

    Returns:
        The finished artifact, which :func:`evaluate` takes.

    Raises:
        UserError: Bad input, before anything is loaded where it can be known.
        WorkFailed: Out of memory, a loss that is not finite, a full disk.

    Example:
        >>> from calibtune import Recipe
        >>> fit(Recipe(method="rcft"), "runs/rcft", tasks=["mc_calib_indomain"])
        Traceback (most recent call last):
        harness_ext.errors.UserError: the recipe lacks model; give it to fit() or to the recipe
    """
    from calibtune.recipe import missing

    given: dict[str, Any] = {"model": model and os.fspath(model), "tasks": tasks and _names(tasks)}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value})
    if lacking := missing(vars(recipe)):
        names = " and ".join(text.removeprefix("--").removesuffix(" is missing") for text in lacking)
        raise UserError(f"the recipe lacks {names}; give it to fit() or to the recipe")
    from calibtune.locks import held

    if recipe.method == "auto":
        from calibtune.tuning.auto import fit_auto as run
    else:
        from calibtune.tuning.fit import fit as run
    with held(Path(output)):
        return run(recipe, Path(output), resume, overwrite)


def evaluate(
    model: PathLike | None = None,
    artifact: PathLike | None = None,
    *,
    tasks: str | Sequence[str] = (),
    data: PathLike | None = None,
    columns: str = "",
    skip_bad_rows: bool = False,
    as_letters: bool = False,
    output: PathLike | None = None,
    revision: str | None = None,
    apply_chat_template: bool | None = None,
    chat_template_args: dict[str, Any] | None = None,
    add_bos_token: bool | None = None,
    quantization: Quantization | None = None,
    precision: Precision | None = None,
    batch_size: int | str | None = None,
    limit: int | None = None,
    shard: str | None = None,
    num_fewshot: int | None = None,
    orders: int | str | None = None,
    device: str | None = None,
    include_path: PathLike | None = None,
    backend: str = "hf-prefix",
    model_args: dict[str, Any] | None = None,
    base_url: str | None = None,
    trust_remote_code: bool = False,
    drop_seen: bool = False,
    hf_hub_log_args: dict[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a base model or an artifact through lm_eval. What is None is as the artifact was fitted.

    Args:
        model: Base model, hub id or folder; None: the artifact's.
        artifact: What :func:`fit` returned, or its folder; None: the base model alone.
        tasks: Harness tasks, a list or one text with commas.
        data: Own questions beside or in place of tasks: a JSONL, CSV or Parquet file, or a data set's id.
        columns: Its columns, as ``question=NAME,choices=NAME[,NAME...],answer=NAME``; found by their usual names.
        skip_bad_rows: Leave out rows of ``data`` that cannot be used.
        as_letters: Ask the harness's tasks with our prompt and letters.
        output: Folder for lm_eval's result and sample files; None: a temporary one that lives until Python ends.
        revision: Branch, tag or commit of the model on the hub.
        apply_chat_template: Render prompts with the tokenizer's chat template.
        chat_template_args: Further arguments of the chat template.
        add_bos_token: Begin prompts with the tokenizer's beginning-of-text token.
        quantization: "nf4" holds the base model in 4 bits; "none".
        precision: "bf16", "fp32", or "auto": bf16 where it is fast; auto where no artifact says it.
        batch_size: Questions in a forward pass, or "auto"; None: 16, and on a GPU as many more as short prompts allow.
        limit: Evaluate the first so many questions of each task.
        shard: Evaluate a part of these, such as "3/8" for the third eighth by the documents' hashes; :func:`report` and
            :func:`load_samples` put all shards of a run together.
        num_fewshot: Examples in the prompt; None: as the task says.
        orders: Ask each question in so many cyclic orders of its options and average the probabilities; "all": in as
            many as it has options.
        device: "cuda", "cpu", "mps"; None: found by itself.
        include_path: Folder of further task YAMLs.
        backend: "hf-prefix", which computes once what prompts share; "hf", which computes each prompt whole; "vllm";
            or "api", an OpenAI-compatible server.
        model_args: Further arguments of vLLM, such as ``tensor_parallel_size``.
        base_url: The server's address, which ends in /v1; None: OpenAI's.
        trust_remote_code: Run code that comes with the model.
        drop_seen: Leave out questions that the artifact was fitted on, and count them in a warning, instead of
            refusing them.
        hf_hub_log_args: Push results to the hub as lm_eval does, with the token of ``HF_TOKEN``; such as
            ``{"push_results_to_hub": True, "hub_results_org": "ORG"}``.

    Returns:
        The numbers by task and metric, and the folder of the files. Where several processes evaluate, all but the
        first get no numbers.

    Raises:
        UserError: Options out of range, an output that cannot be written, a model that cannot be loaded or asked for
            letters, an unknown task, another base, or evaluated documents that the artifact was fitted on.
        WorkFailed: Out of memory, or the results were not written or not pushed.
    """
    from calibtune.evaluation.evaluate import Evaluation, EvaluationOptions
    from calibtune.evaluation.evaluate import evaluate as run
    from calibtune.locks import held
    from harness_ext.orders import read_orders

    options = EvaluationOptions(
        tasks=_names(tasks),
        output=_temporary() if output is None else Path(output),
        model=None if model is None else os.fspath(model),
        revision=revision,
        artifact=None if artifact is None else Path(artifact),
        apply_chat_template=apply_chat_template,
        chat_template_args=chat_template_args,
        add_bos_token=add_bos_token,
        quantization=quantization,
        precision=precision,
        batch_size=None if batch_size is None else str(batch_size),
        limit=limit,
        shard=shard,
        num_fewshot=num_fewshot,
        orders=None if orders is None else read_orders(orders, "--orders"),
        device=device,
        include_path=None if include_path is None else os.fspath(include_path),
        data=None if data is None else os.fspath(data),
        columns=columns,
        skip_bad_rows=skip_bad_rows,
        as_letters=as_letters,
        backend=backend,
        model_args=model_args,
        base_url=base_url,
        trust_remote_code=trust_remote_code,
        drop_seen=drop_seen,
        hf_hub_log_args=hf_hub_log_args,
    )
    with held(options.output):
        return run(options) or Evaluation(options.output, {}, {}, options)


def mend(
    model: PathLike,
    output: PathLike,
    *,
    tasks: str | Sequence[str] = (),
    data: PathLike | None = None,
    columns: str = "",
    skip_bad_rows: bool = False,
    as_letters: bool = False,
    include_path: PathLike | None = None,
    out_tasks: str | Sequence[str] | None = None,
    revision: str | None = None,
    apply_chat_template: bool | None = None,
    chat_template_args: dict[str, Any] | None = None,
    add_bos_token: bool | None = None,
    quantization: Quantization = "none",
    device: str | None = None,
    trust_remote_code: bool = False,
    limit: int | None = None,
    budget: float = 60.0,
    orders: int | str = 1,
) -> Mended:
    """Measure a model, fit what may mend it, choose by held-out NLL, measure again, and recommend.

    A model that cannot be told from calibrated is left as it is. Else the candidates are a temperature, an adapter
    (:func:`fit` with ``method="auto"``) and both; with ``orders`` also a temperature at several orders of the options,
    on the base and on the adapter. It runs ordinary commands in processes of their own. Called again, it goes on after
    the last one that is done.

    Args:
        model: Hub id or folder.
        output: Folder of all that is made.
        tasks: Harness tasks to fit on and to measure; mc_calib_indomain where neither tasks nor data are given.
        data: As in :func:`evaluate`; so are columns, skip_bad_rows, as_letters and include_path.
        columns: See data.
        skip_bad_rows: See data.
        as_letters: See data.
        include_path: See data.
        out_tasks: Tasks to measure that are never fitted on; None: mc_calib_arc_merged, where the questions are ours.
        revision: As in :func:`evaluate`; so are the arguments up to trust_remote_code.
        apply_chat_template: None: if the tokenizer has a chat template.
        chat_template_args: See revision.
        add_bos_token: See revision.
        quantization: See revision.
        device: See revision.
        trust_remote_code: See revision.
        limit: Measure on the first so many questions of each task.
        budget: Minutes that training adapters and what follows may take, as estimated: the mean of 4, 2 or 1, as there
            is time for; else none.
        orders: Orders of its options in which a question may be asked, at as many passes of the model; "all": as many
            as it has options; 1: its own alone.

    Returns:
        The recommendation, the artifact, and the numbers before and after.

    Raises:
        UserError: Options out of range, or an output folder of another model.
        WorkFailed: A command failed; it has said why.
    """
    from calibtune.locks import held
    from calibtune.mending.plan import IN, OUT, Options, check
    from calibtune.mending.run import mend as run
    from calibtune.models.loading import load_tokenizer
    from calibtune.spec import ModelSpec, QuestionSpec
    from harness_ext.orders import read_orders

    spec = ModelSpec(
        os.fspath(model),
        revision=revision,
        quantization=quantization,
        device=device,
        chat_template_args=chat_template_args or {},
        add_bos_token=add_bos_token,
        trust_remote_code=trust_remote_code,
    )
    questions = QuestionSpec(
        _names(tasks) or (() if data else (IN,)),
        include_path=None if include_path is None else os.fspath(include_path),
        data=None if data is None else os.fspath(data),
        columns=columns,
        skip_bad_rows=skip_bad_rows,
        as_letters=as_letters,
    )
    out = (OUT,) if out_tasks is None and questions.names == (IN,) else _names(out_tasks or ())
    options = Options(spec, Path(output), questions, out, limit, budget, read_orders(orders, "--orders"))
    check(options)
    if apply_chat_template is None:
        apply_chat_template = bool(load_tokenizer(spec).chat_template)
    spec = dataclasses.replace(spec, apply_chat_template=apply_chat_template)
    with held(Path(output)):
        return run(dataclasses.replace(options, model=spec))


def report(
    evaluations: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    base: PathLike | None = None,
    labels: Sequence[str] = (),
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    processes: int = 1,
) -> Path:
    """Write one page, figures and tables that compare evaluations, question by question.

    Args:
        evaluations: What :func:`evaluate` returned, or folders that lm_eval wrote with ``--log_samples``.
        output: The report's folder.
        base: Evaluation, folder or label that the others are compared to; None: the first.
        labels: Names of the runs, one for each; found by themselves where empty.
        overwrite: Remove existing files in ``output``.
        step: Called with a text after each piece of work.
        processes: Processes that read and draw, where there are twelve samples files or more. With more than one, a
            script needs ``if __name__ == "__main__":``.

    Returns:
        Path of the page, ``report.html``. Beside it lie ``figures/``, ``tables.md``, ``tables.tex`` and
        ``results.json``.

    Raises:
        UserError: No runs, an unknown base, labels that do not fit, or ``output`` holds files or an evaluation.
        UserError: A samples file is damaged.
    """
    _write_page("calibtune.reporting.write", evaluations, output, base, labels, overwrite, step, processes)
    return Path(output) / "report.html"


def regime(
    evaluations: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    base: PathLike | None = None,
    labels: Sequence[str] = (),
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    processes: int = 1,
) -> Path:
    """Write a page of accuracy against calibration: frontier, the theory's bounds, preference collapse.

    Args:
        evaluations: As in :func:`report`, of the artifacts of one model; also output folders of ``reproduce`` or
            ``demo``, which stand for all evaluations in them.
        output: The page's folder.
        base: As in :func:`report`; the model that is shown first.
        labels: As in :func:`report`.
        overwrite: As in :func:`report`.
        step: As in :func:`report`.
        processes: As in :func:`report`.

    Returns:
        Path of the page, ``regime.html``. Beside it lie ``figures/`` and ``regime.json``.

    Raises:
        UserError: As in :func:`report`.
    """
    _write_page("calibtune.reporting.regime.write", evaluations, output, base, labels, overwrite, step, processes)
    return Path(output) / "regime.html"


def _write_page(
    writer: str,
    evaluations: PathLike | Sequence[PathLike],
    output: PathLike,
    base: PathLike | None,
    labels: Sequence[str],
    overwrite: bool,
    step: Callable[[str], None],
    processes: int,
) -> None:
    from calibtune.files import keep_inputs, refuse_existing
    from calibtune.locks import held
    from calibtune.parallel import mapping

    several = [evaluations] if isinstance(evaluations, (str, os.PathLike)) else evaluations
    folders, target = [Path(each) for each in several], Path(output)
    if not folders:
        raise UserError("there is no evaluation to report; give one or more")
    keep_inputs(target, *folders)
    with held(target):
        # Check before any work; with --overwrite, old files are removed only when the report is ready.
        if not overwrite:
            refuse_existing(target, overwrite=False)
        files = sum(1 for folder in folders for _ in folder.rglob("samples_*.jsonl"))
        with mapping(processes if files >= MANY_FILES else 1, [writer]) as mapped:
            # The processes import this too, at the same time.
            build = importlib.import_module("calibtune.reporting.build").build
            write = importlib.import_module(writer).write
            results = build(folders, None if base is None else os.fspath(base), labels, step, mapped)
            write(results, target, overwrite, step, mapped)


def leaderboard(
    evaluations: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    sort: str | None = None,
    add: bool = False,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> Path:
    """Rank models on their tasks, with paired tests and intervals of the ranks.

    Args:
        evaluations: What :func:`evaluate` returned, or folders that lm_eval wrote with ``--log_samples``.
        output: The board's folder.
        sort: "nll", "conf_ece" or "acc"; None: as the board was before, else "nll".
        add: Add the models to the board in ``output``, whose own samples files may be gone.
        overwrite: Remove existing files in ``output``.
        step: Called with a text after each piece of work.

    Returns:
        Path of the page, ``leaderboard.html``. Beside it lie ``leaderboard.csv``, ``pairs.csv``, ``leaderboard.md``,
        ``leaderboard.json``, and in ``kept/`` the answers, for ``add``.

    Raises:
        UserError: No runs, an unknown sort, no board to add to or a damaged one, two models of a task without a common
            question, or ``output`` holds files or an evaluation.
        UserError: A samples file is damaged.
    """
    from calibtune.files import keep_inputs, refuse_existing
    from calibtune.locks import held
    from calibtune.reporting.leaderboard.compare import SORTS
    from calibtune.reporting.leaderboard.write import make

    several = [evaluations] if isinstance(evaluations, (str, os.PathLike)) else evaluations
    folders, target = [Path(each) for each in several], Path(output)
    if not folders:
        raise UserError("there is no evaluation to rank; give one or more")
    if sort not in (None, *SORTS):
        raise UserError(f"sort is {sort!r}; give one of {', '.join(SORTS)}")
    if add and overwrite:
        raise UserError("--add keeps what is on the board and --overwrite removes it; give one of them")
    keep_inputs(target, *folders)
    with held(target):
        if not add and not overwrite:
            refuse_existing(target, overwrite=False)
        make(folders, target, sort, add, overwrite, step)
    return target / "leaderboard.html"


def load(folder: PathLike) -> Artifact:
    """Read a finished artifact. A temperature's ``probs(log_probs)`` applies it to arrays.

    Args:
        folder: What :func:`fit` wrote, or the id of a repository that ``calibtune push`` made of it.

    Returns:
        The artifact, which :func:`evaluate` takes.

    Raises:
        UserError: The folder holds no whole artifact.
    """
    from calibtune.artifacts.manifest import read_artifact
    from calibtune.artifacts.named import artifact_folder

    return read_artifact(artifact_folder(Path(folder)))


def load_samples(path: PathLike | Sequence[PathLike]) -> list[Samples]:
    """Read what a model answered to each question, from the files that lm_eval's ``--log_samples`` wrote.

    Args:
        path: A samples file, or a folder: the newest file of each task in it and below. Or several of them, such as
            the folders of all shards of a run.

    Returns:
        For each file, or all shards of one, the arrays ``log_probs`` (N, K) and ``labels`` (N,), and the N
        ``documents``.

    Raises:
        UserError: There is no such file, or it is damaged or incomplete, or a shard is missing.
    """
    from calibtune.results.samples import find_samples, read_samples
    from calibtune.results.shards import together

    several = [path] if isinstance(path, (str, os.PathLike)) else path
    files = [file for each in several for file in find_samples(Path(each))]
    return [read_samples(*shards) for shards in together(files)]


def _names(tasks: str | Sequence[str]) -> tuple[str, ...]:
    names = tasks.split(",") if isinstance(tasks, str) else tasks
    return tuple(name.strip() for name in names if name.strip())


def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="calibtune-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
