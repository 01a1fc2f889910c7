"""What tests of the report share."""

from lm_eval_files import answers, write_run

from calibtune.__main__ import main

BASE = {"pretrained": "org/base-7b"}
CFT = {"pretrained": "org/base-7b", "peft": "runs/cft"}
RCFT = {"pretrained": "org/base-7b", "peft": "runs/rcft"}


def report(*arguments):
    return main(["report", *map(str, arguments)])


def two_runs(folder, rows=120, **options):
    write_run(folder / "base", {"arc": answers(rows, sharpness=3.0, **options)}, BASE)
    write_run(folder / "cft", {"arc": answers(rows, sharpness=1.0, **options)}, CFT)
    return folder / "base", folder / "cft"


def fails(capsys, *arguments):
    """The one sentence that the command ends with."""
    assert report(*arguments) == 2
    return capsys.readouterr().err
