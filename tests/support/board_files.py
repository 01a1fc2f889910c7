"""What tests of the leaderboard share."""

import json

from lm_eval_files import answers, write_run

from calibtune.__main__ import main

SHARPNESS = (1.0, 1.1, 2.0, 3.0, 0.5, 1.5)


def write_model(folder, number, tasks=("arc", "obqa"), rows=120, name=None, sharpness=None, seed=0, **record):
    """Write a run of a made-up model on tasks of which all models of one seed see the same questions."""
    args = {"pretrained": name or f"org/model-{number}"}
    told = {
        task: answers(rows, 4, sharpness or SHARPNESS[number % 6], seed=seed + place, noise=0.2 * number)
        for place, task in enumerate(tasks)
    }
    config = {"model": "hf", "model_args": args, "model_num_parameters": (number + 1) * 10**9}
    write_run(folder / f"m{number}", told, args, config=config, **record)
    return folder / f"m{number}"


def leaderboard(*arguments):
    return main(["leaderboard", *map(str, arguments)])


def board(folder):
    return json.loads((folder / "leaderboard.json").read_text())


def rows_of(table):
    return {row["label"]: row for row in table["rows"]}


def fails(capsys, *arguments):
    """The one sentence that the command ends with."""
    assert leaderboard(*arguments) == 2
    return capsys.readouterr().err
