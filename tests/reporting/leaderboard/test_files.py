import csv
import json
import re
import subprocess
import sys

import pytest
from board_files import board, fails, write_model
from commands import shell
from processor import at_most

import calibtune as ct
from calibtune.errors import UserError
from calibtune.reporting.leaderboard.tables import members, size

HOSTILE = 'org/<b>x</b>"|`a`[l](http://x)'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    folders = [write_model(folder, number, name="org/=1+1" if number == 3 else None) for number in range(4)]
    folders.append(write_model(folder, 4, name=HOSTILE))
    page = ct.leaderboard(folders, folder / "out", sort="conf_ece")
    return page.parent


def test_csv_has_a_row_for_each_task_and_model(made):
    rows = list(csv.DictReader((made / "leaderboard.csv").open()))
    assert len(rows) == 15
    table = board(made)["tables"][1]
    for row, expected in zip(rows[5:10], table["rows"], strict=True):
        assert (row["task"], row["model"]) == ("arc", expected["label"].replace("=1+1", "'=1+1"))
        assert float(row["conf_ece_10"]) == expected["numbers"]["conf_ece_10"]
        assert int(row["conf_ece_10_rank_high"]) == expected["ranks"]["conf_ece"]["high"]
    pairs = list(csv.DictReader((made / "pairs.csv").open()))
    assert len(pairs) == 3 * 3 * 10
    assert "'=1+1" in {pair[end] for pair in pairs for end in "ab"}


def test_markdown_has_a_table_for_each_task(made):
    text = (made / "leaderboard.md").read_text()
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["macro average", "arc", "obqa"]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 3 * 7
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}


def test_page_shows_all_without_a_script_and_no_text_as_markup(made):
    page = (made / "leaderboard.html").read_text()
    assert "<b>x</b>" not in page
    static = page[: page.index("<script>")]
    for row in board(made)["tables"][0]["rows"]:
        assert f"{row['numbers']['nll']:.3f}" in static
    assert static.count('<table class="board">') == 3
    assert 'class="controls" hidden' in static
    assert "http" not in re.sub(r"http://x|&#34;http", "", static)


def test_verdict_names_the_first_and_who_cannot_be_told_from_it(made):
    table = board(made)["tables"][0]
    first = table["rows"][0]["label"]
    like = [pair for pair in table["pairs"]["conf_ece"] if first in (pair["a"], pair["b"]) and pair["better"] is None]
    page = (made / "leaderboard.html").read_text()
    (verdict,) = re.findall(r"<p>([^<]* has the lowest conf-ECE on average over 2 tasks[^<]*)</p>", page)
    assert verdict.startswith(first)
    assert ("cannot be told from it" in verdict) == bool(like)


def test_letters_of_groups():
    table = {"groups": {"nll": [["a", "b"], ["b", "c"]]}}
    assert members(table, "nll") == {"a": "a", "b": "a b", "c": "b"}
    many = {"groups": {"nll": [[str(number)] for number in range(28)]}}
    assert [members(many, "nll")[number] for number in ("25", "26", "27")] == ["z", "aa", "ab"]


@pytest.mark.parametrize(("parameters", "text"), [(8_030_261_248, "8.0B"), (135_000_000, "135M"), (123, "123")])
def test_sizes_are_short(parameters, text):
    assert size(parameters) == text


def test_python_refuses_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="sort is 'ece'; give one of nll, conf_ece, acc"):
        ct.leaderboard(tmp_path, tmp_path / "out", sort="ece")
    with pytest.raises(UserError, match="give one or more"):
        ct.leaderboard([], tmp_path / "out")
    with pytest.raises(UserError, match="give one of them"):
        ct.leaderboard(tmp_path, tmp_path / "out", add=True, overwrite=True)


def test_output_folder_is_checked_first(tmp_path, capsys):
    folder = write_model(tmp_path / "runs", 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    assert "is not empty" in fails(capsys, folder, "--output", tmp_path / "full")
    assert "contains" in fails(capsys, folder, "--output", tmp_path / "runs", "--overwrite")
    assert "does not exist" in fails(capsys, tmp_path / "nowhere", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_first_table(tmp_path):
    folders = [write_model(tmp_path, number) for number in range(12)]
    run = shell(
        ["-m", "calibtune", "leaderboard", *folders, "--output", "out"],
        tmp_path,
        sys.executable,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    told, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    lines = told.splitlines()
    assert lines[0] == "macro average, 240 questions, by NLL:"
    first = board(tmp_path / "out")["tables"][0]["rows"][0]
    assert lines[2].split()[0] == first["label"]
    assert lines[12] == "  and 2 more"
    assert lines[-1].endswith("leaderboard.html in a browser")


@pytest.mark.slow
def test_twenty_models_of_1000_questions_on_four_tasks_cost_at_most_four_times_twelve_plain_figures(tmp_path):
    tasks = ("arc", "openbookqa", "medmcqa", "mmlu")
    folders = [write_model(tmp_path, number, tasks=tasks, rows=1000) for number in range(20)]
    code = f"import calibtune as ct; ct.leaderboard({[str(f) for f in folders]!r}, 'OUT')"
    assert at_most(4, ["-c", code], tmp_path)
    assert json.loads(next(tmp_path.glob("out-*/leaderboard.json")).read_text())["tables"][0]["questions"] == 4000
