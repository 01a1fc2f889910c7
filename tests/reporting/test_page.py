import re

from lm_eval_files import answers, write_run
from report_files import report, two_runs


def test_page_loads_nothing_external(tmp_path):
    report(*two_runs(tmp_path), "--output", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    references = re.findall(r'(?:src|href|data|action|poster)="([^"]*)"', page)
    assert references
    # The page of accuracy against calibration lies beside it, as do the files that it offers.
    beside = set(re.findall('href="([^"]*)" download', page)) | {"regime.html"}
    assert {name for name in references if not name.startswith(("#", "data:"))} == beside
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_page_escapes_html_in_names(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, {"pretrained": 'x<script>alert("1")</script>&$a_b$'})
    report(folder, "--output", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
