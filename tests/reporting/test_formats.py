import re

from lm_eval_files import answers, write_run
from report_files import report


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
