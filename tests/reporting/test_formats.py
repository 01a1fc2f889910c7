import csv
import io
import re

import pytest
from lm_eval_files import answers, write_run
from report_files import report, two_runs

from calibtune.reporting.formats import csv_text

pytestmark = pytest.mark.usefixtures("undrawn")


def test_tables_escape_latex_and_markdown(tmp_path):
    folder = write_run(tmp_path / "run", {"mc_calib_arc": answers(10)}, {"pretrained": "org/100%_a&b|c"})
    report(folder, "--output", tmp_path / "out")
    latex = (tmp_path / "out" / "tables.tex").read_text()
    assert r"100\%\_a\&b\textbar{}c" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == latex.count(r"\begin{table}") == 7
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", latex, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(table[0])}
    markdown = (tmp_path / "out" / "tables.md").read_text()
    assert r"100%\_a&b\|c" in markdown


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "＝", "＋", "－", "＠"])
def test_a_text_of_a_csv_that_begins_as_a_formula_is_defused(sign):
    rows = [{"model": f'{sign}HYPERLINK("x";"y")', "note": f"a{sign}b", "nll": -0.5, "acc": None}]
    ((model, note, *numbers),) = list(csv.reader(io.StringIO(csv_text(rows), newline="")))[1:]
    assert model == f"'{rows[0]['model']}"
    assert [note, *numbers] == [rows[0]["note"], "-0.5", ""]


@pytest.mark.parametrize("sign", ["\t", "\r", "\n"])
def test_a_text_of_a_csv_has_no_tab_or_line_end_after_which_a_formula_could_begin(sign):
    ((text,),) = list(csv.reader(io.StringIO(csv_text([{"model": f"{sign}=1{sign}=1"}]), newline="")))[1:]
    assert text == f"{sign}=1{sign}=1".encode("unicode_escape").decode()


def test_labels_that_are_formulas_are_texts_in_the_reports_csv(tmp_path):
    labels = ["--label==1+1", "--label", "@SUM(1)"]
    report(*two_runs(tmp_path), *labels, "--output", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "tables.csv").open()))
    assert [row["method"] for row in rows] == ["'=1+1", "'@SUM(1)"]
