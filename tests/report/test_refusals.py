import re
import subprocess
import sys

import pytest
from lm_eval_files import answers, write_run
from report_files import fails, report, two_runs

from calibtune.results.samples import find_samples


def test_results_without_samples_name_the_missing_flag(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, samples=False)
    message = fails(capsys, folder, "--output", tmp_path / "out")
    assert "--log_samples" in message
    assert str(folder) in message
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert f"{tmp_path / 'no'} does not exist" in fails(capsys, tmp_path / "no", "--output", tmp_path / "out")


def test_a_damaged_samples_file_stops_the_report(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    path = find_samples(folder)[0]
    path.write_text(path.read_text()[:-30])
    assert "line 10: not a whole JSON object" in fails(capsys, folder, "--output", tmp_path / "out")


def test_an_existing_report_is_kept_unless_overwritten(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert "--overwrite" in fails(capsys, folder, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert report(folder, "--output", tmp_path / "out", "--overwrite") == 0
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_what_is_there_stays_when_the_runs_cannot_be_read(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("old")
    fails(capsys, tmp_path / "no", "--output", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "report.html").read_text() == "old"


def test_the_report_never_overwrites_its_own_runs(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    for output in (folder, tmp_path / "run", tmp_path):
        assert "give another folder" in fails(capsys, folder, "--output", output, "--overwrite")
    assert find_samples(folder)


def test_the_report_needs_no_torch_and_no_harness(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    code = (
        "import sys; from calibtune.__main__ import main\n"
        f"assert main(['report', {str(folder)!r}, '--output', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert not {'torch', 'lm_eval', 'datasets', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tables_escape_what_latex_and_markdown_would_read(tmp_path):
    folder = write_run(tmp_path / "run", {"mc_calib_arc": answers(10)}, {"pretrained": "org/100%_a&b|c"})
    report(folder, "--output", tmp_path / "out")
    latex = (tmp_path / "out" / "tables.tex").read_text()
    assert r"100\%\_a\&b\textbar{}c" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == latex.count(r"\begin{table}") == 3
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", latex, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(table[0])}
    markdown = (tmp_path / "out" / "tables.md").read_text()
    assert r"100%\_a&b\|c" in markdown


def test_names_cannot_break_out_of_the_page(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, {"pretrained": 'x<script>alert("1")</script>&$a_b$'})
    report(folder, "--output", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_the_same_runs_give_the_same_page(tmp_path):
    folders = two_runs(tmp_path)
    for name in ("one", "two"):
        report(*folders, "--output", tmp_path / name)
    for file in ("report.html", "results.json", "figures/arc_plane.svg", "figures/arc_plane.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    "part",
    [
        {"results": {"arc": 3}},
        {"config": ["hf"]},
        {"configs": [1]},
        {"n-shot": [0]},
        {"group_subtasks": {"g": 7}},
        {"n-samples": None},
        {"n-samples": {"arc": 10}},
        {"n-samples": {"arc": None}},
        {"n-samples": {"arc": {"original": 10}}},
        {"task_hashes": "abc"},
    ],
    ids=str,
)
def test_a_results_file_of_another_shape_is_named_with_its_part(tmp_path, capsys, part):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, **part)
    message = fails(capsys, folder, "--output", tmp_path / "out")
    assert next(iter(folder.glob("results_*.json"))).name in message
    assert message.count("\n") == 1
    assert "run the evaluation again" in message
    assert not (tmp_path / "out").exists()
