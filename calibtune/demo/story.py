"""What the demo runs, as command lines that a user could type, and the table of what came out."""

from __future__ import annotations

from pathlib import Path

from calibtune.artifacts.tasks import SUFFIX
from calibtune.demo import ALIGNED, IN_DOMAIN, OUT_DOMAIN, PRETRAINED
from calibtune.errors import WorkFailed
from calibtune.reading import read_json
from calibtune.results.schema import AGAIN, Results

TASKS = (IN_DOMAIN, OUT_DOMAIN)
#: For a model of this size; half a million parameters bear, and need, a higher learning rate than billions.
TRAINING = ("--epochs", "3", "--batch-size", "32", "--learning-rate", "1e-3", "--rank", "16", "--lora-alpha", "32")
#: Name of each fit, in the order of the table: its method and further flags.
FITS: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "label-smoothing": ("label-smoothing", *TRAINING),
    "cft": ("cft", *TRAINING),
    "rcft": ("rcft", *TRAINING),
    "rcft-temperature": ("temperature", "--artifact", "rcft"),
}
#: Columns of the table: the harness's metric and its heading.
COLUMNS = {"acc": "accuracy", "conf_ece_10": "conf-ECE", "nll": "NLL", "tce": "TCE"}


def steps(output: Path, seed: int = 0) -> list[list[str]]:
    """Return the demo's commands, each as the words after ``python -m calibtune``.

    Args:
        output: The demo's folder.
        seed: Of the fits.

    Returns:
        Evaluations of both checkpoints; a fit and an evaluation for each method; the report on all of them.
    """
    commands = [
        _evaluation(output, "pretrained", ["--model", str(PRETRAINED)]),
        _evaluation(output, "aligned", ["--model", str(ALIGNED)]),
    ]
    for name, (method, *flags) in FITS.items():
        flags = [str(output / "fits" / flag) if flag in FITS else flag for flag in flags]
        folder = output / "fits" / name
        commands += [
            [
                "fit",
                "--method",
                method,
                "--model",
                str(ALIGNED),
                "--tasks",
                IN_DOMAIN,
                "--output",
                str(folder),
                "--apply-chat-template",
                "--precision",
                "fp32",
                "--seed",
                str(seed),
                *flags,
            ],
            _evaluation(output, name, ["--artifact", str(folder)]),
        ]
    names = ["pretrained", "aligned", *FITS]
    folders = [str(output / "evaluations" / name) for name in names]
    base = str(output / "evaluations" / "aligned")
    return [*commands, ["report", *folders, "--base", base, "--output", str(output / "report")]]


def _evaluation(output: Path, name: str, model: list[str]) -> list[str]:
    return [
        "eval",
        *model,
        "--tasks",
        ",".join(TASKS),
        "--output",
        str(output / "evaluations" / name),
        "--apply-chat-template",
        "--precision",
        "fp32",
        "--batch-size",
        "128",
    ]


def numbers(output: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Read the harness's own numbers, by method, task and metric.

    Args:
        output: The demo's folder, evaluations done.

    Raises:
        WorkFailed: A method was not evaluated.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("pretrained", "aligned", *FITS):
        files = sorted((output / "evaluations" / name).rglob("results_*.json"))
        if not files:
            raise WorkFailed(f"{output / 'evaluations' / name} holds no results; run the demo again with --overwrite")
        results = read_json(files[-1], Results, AGAIN)["results"]
        found[name] = {}
        for task in TASKS:
            # A temperature's task has two pipelines, of which the scaled one is meant.
            values, pipeline = (results[task], "none") if task in results else (results[task + SUFFIX], "scaled")
            suffix = f",{pipeline}"
            found[name][task] = {key.removesuffix(suffix): v for key, v in values.items() if key.endswith(suffix)}
    return found


def table(output: Path) -> str:
    """Return the demo's table: one line a method, in and out of the domain, under acc* and over what to read in it."""
    values = numbers(output)
    head = "".join(f"{title:>10}" for title in COLUMNS.values())
    lines = [f"{'':18}{'in the domain':^40}   {'out of the domain':^40}", f"{'':18}{head}   {head}"]
    for name, tasks in values.items():
        cells = ["".join(f"{tasks[task][metric]:10.3f}" for metric in COLUMNS) for task in TASKS]
        lines.append(f"{name:18}{cells[0]}   {cells[1]}")
    best = [values["pretrained"][task]["acc_star"] for task in TASKS]
    lines += [
        "",
        f"acc*, the most that a calibrated model can expect: {best[0]:.3f} in the domain, {best[1]:.3f} out of it.",
        "TCE: true calibration error, the mean L1 distance to the known p* (0 to 2). NLL in nats.",
    ]
    return "\n".join(lines)
