import json
import shutil

import pytest
from board_files import board, fails, leaderboard, rows_of, write_model


def csv_of(folder):
    return (folder / "leaderboard.csv").read_text()


def test_a_model_is_added_where_the_earlier_samples_are_gone(tmp_path):
    folders = [write_model(tmp_path / "runs", number) for number in range(3)]
    leaderboard(*folders, "--output", tmp_path / "whole")
    leaderboard(*folders[:2], "--output", tmp_path / "out")
    for folder in folders[:2]:
        shutil.rmtree(folder)
    assert leaderboard(folders[2], "--add", "--output", tmp_path / "out") == 0
    assert csv_of(tmp_path / "out") == csv_of(tmp_path / "whole")
    assert (tmp_path / "out" / "pairs.csv").read_text() == (tmp_path / "whole" / "pairs.csv").read_text()


def test_a_model_that_is_there_gets_its_new_answers_and_other_tasks(tmp_path):
    folders = [write_model(tmp_path, number) for number in range(2)]
    leaderboard(*folders, "--output", tmp_path / "out")
    again = write_model(tmp_path, 1, sharpness=4.0)
    other = write_model(tmp_path / "more", 1, tasks=("mmlu",))
    files = len(list((tmp_path / "out" / "kept").iterdir()))
    leaderboard(again, other, "--add", "--output", tmp_path / "out")
    found = board(tmp_path / "out")
    assert [model["label"] for model in found["models"]] == ["model-0", "model-1"]
    assert {table["name"]: len(table["rows"]) for table in found["tables"]}["mmlu"] == 1
    # The new answers took the place of the old ones; the new task has answers and questions.
    assert len(list((tmp_path / "out" / "kept").iterdir())) == files + 2
    leaderboard(tmp_path / "m0", again, other, "--output", tmp_path / "whole")
    assert csv_of(tmp_path / "out") == csv_of(tmp_path / "whole")


def test_a_temperature_is_kept_with_its_run(tmp_path):
    one = write_model(tmp_path, 0, filters={"none": 1.0, "scaled": 2.0})
    leaderboard(one, "--output", tmp_path / "out")
    leaderboard(write_model(tmp_path, 1), "--add", "--output", tmp_path / "out")
    numbers = rows_of(board(tmp_path / "out")["tables"][0])
    assert {"model-0", "model-0 + temperature T = 2", "model-1"} == set(numbers)
    leaderboard(one, tmp_path / "m1", "--output", tmp_path / "whole")
    assert csv_of(tmp_path / "out") == csv_of(tmp_path / "whole")


def test_a_board_keeps_its_sort_until_another_is_given(tmp_path):
    leaderboard(write_model(tmp_path, 0), "--sort", "acc", "--output", tmp_path / "out")
    leaderboard(write_model(tmp_path, 1), "--add", "--output", tmp_path / "out")
    assert board(tmp_path / "out")["sort"] == "acc"
    leaderboard(write_model(tmp_path, 2), "--add", "--sort", "conf_ece", "--output", tmp_path / "out")
    assert board(tmp_path / "out")["sort"] == "conf_ece"


def test_other_questions_are_noticed_against_a_board(tmp_path, capsys):
    leaderboard(write_model(tmp_path, 0, tasks=("arc",)), "--output", tmp_path / "out")
    other = write_model(tmp_path, 1, tasks=("arc",))
    for path in other.rglob("samples_*"):
        path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "other'))
    before = csv_of(tmp_path / "out")
    assert "shares no question of arc" in fails(capsys, other, "--add", "--output", tmp_path / "out")
    assert csv_of(tmp_path / "out") == before


def test_there_must_be_a_board_to_add_to(tmp_path, capsys):
    one = write_model(tmp_path, 0)
    error = fails(capsys, one, "--add", "--output", tmp_path / "out")
    assert error.endswith("so there is no board to add to; leave out --add\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["answers", "questions", "missing", "index", "temperature", "short"])
def test_a_damaged_board_ends_in_one_sentence(tmp_path, capsys, damage):
    one, out = write_model(tmp_path, 0, tasks=("arc",)), tmp_path / "out"
    leaderboard(one, "--output", out)
    (answers,), (questions,) = (list((out / "kept").glob(end)) for end in ("*.npy", "*.json"))
    index = json.loads((out / "leaderboard.json").read_text())
    if damage == "answers":
        answers.write_bytes(answers.read_bytes()[:-8] + b"\0" * 8)
    elif damage == "questions":
        questions.write_text(questions.read_text().replace("0", "1"))
    elif damage == "missing":
        answers.unlink()
    elif damage == "index":
        index["kept"][0]["tasks"]["arc"]["answers"] = "../../secret"
    elif damage == "temperature":
        index["kept"][0]["tasks"]["arc"]["temperature"] = 0
    elif damage == "short":
        index["kept"] = "none"
    (out / "leaderboard.json").write_text(json.dumps(index))
    error = fails(capsys, write_model(tmp_path, 1, tasks=("arc",)), "--add", "--output", out)
    assert error.count("\n") == 1
    assert "without --add" in error
