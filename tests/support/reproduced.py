"""An output folder of `reproduce` with made-up evaluations and its page."""

from lm_eval_files import answers, win_lines, write_run

from calibtune.files import write_json, write_text
from calibtune.reporting.build import build
from calibtune.reporting.page import REGIME
from calibtune.reproduce.plan import IN, OUT, Options
from calibtune.reproduce.tables import write_tables

SHARPNESS = {"base": 3.0, "label-smoothing, seed 0": 0.8, "cft, seed 0": 1.0, "cft, seed 1": 1.1, "rcft, seed 0": 0.9}
LAMBDAS = {f"rcft-lambda-{value}, seed 0": 1 + float(value) / 9 for value in ("0", "0.4", "1", "1.8")}


def reproduced(folder, rows=300):
    """Write the folder and return its files, the page first."""
    runs = {**SHARPNESS, **LAMBDAS}
    for label, sharpness in runs.items():
        tasks = {IN: answers(rows, 4, sharpness, seed=1), OUT: answers(rows, 5, sharpness, seed=2, ragged=True)}
        args = {"pretrained": "org/base-7b", **({"peft": f"fits/{label}"} if label != "base" else {})}
        others = {"ultrafeedback_winrate": win_lines(seed=len(label))} if label in ("base", "cft, seed 0") else None
        write_run(folder / "evaluations" / label, tasks, args, others=others)
    temperature = {f"{IN}_scaled": answers(rows, 4, 3.0, seed=1)}
    temperature[f"{OUT}_scaled"] = answers(rows, 5, 3.0, seed=2, ragged=True)
    filters = {"none": 1.0, "scaled": 3.0}
    write_run(folder / "evaluations" / "temperature", temperature, {"pretrained": "org/base-7b"}, filters=filters)
    labels = [*runs, "temperature, seed 0"]
    folders = [folder / "evaluations" / label.replace("temperature, seed 0", "temperature") for label in labels]
    # What is read of the report; nobody looks at its own figures here.
    write_json(folder / "report" / "results.json", build(folders, labels=labels))
    for page in ("report.html", REGIME):
        write_text(folder / "report" / page, "")
    return write_tables(Options("org/base-7b", folder))
