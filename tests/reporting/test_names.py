"""Names of models and tasks from other people's files are text, wherever a command shows them."""

import json
import re
import shlex
import xml.etree.ElementTree as xml

import markdown
import pytest
from lm_eval_files import answers, write_run
from report_files import report

from calibtune.__main__ import main

#: Colors the terminal, rings its bell, begins a line of its own, and writes from right to left.
CONTROLS = "m\x1b[31m\x07\ncalibtune: error: \x9b2J\u202e\u2028x"


def shown(text):
    """Whether a text holds no control character but the newlines of its lines."""
    return all(sign.isprintable() for sign in text.replace("\n", ""))


def test_suggested_commands_are_quoted(tmp_path, capsys):
    write_run(tmp_path / "run", {"arc": answers(60)}, {"pretrained": "m; touch X #"})
    assert report(tmp_path / "run", "--output", tmp_path / "report") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:6] == ["python", "-m", "calibtune", "fit", "--method", "temperature"]
    assert words[6:8] == ["--model", "m; touch X #"]


def test_folders_in_suggested_commands_are_quoted(tmp_path, capsys):
    folder = tmp_path / "a; touch X #"
    folder.mkdir()
    for command in (["report", str(folder), "--output", str(tmp_path / "r")], ["rescore", str(folder)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.rstrip().endswith(f"--log_samples --output_path {shlex.quote(str(folder))}")


def test_control_characters_of_names_reach_no_terminal_and_no_file(tmp_path, capsys):
    for number, name in enumerate((CONTROLS, f"{CONTROLS}2")):
        folder = write_run(tmp_path / str(number), {"arc": answers(60, seed=number)}, {"pretrained": "m"})
        (file,) = folder.glob("results_*.json")
        record = json.loads(file.read_text())
        record["config"]["model_args"] = {"pretrained": name}
        file.write_text(json.dumps(record))
    output = tmp_path / "report"
    assert report(tmp_path / "0", tmp_path / "1", "--output", output) == 0
    captured = capsys.readouterr()
    assert shown(captured.out)
    assert "\ncalibtune: error" not in captured.out
    assert "m\\x1b[31m\\x07\\ncalibtune: error: \\x9b2J\\u202e\\u2028x" in captured.out
    files = [path for path in output.rglob("*") if path.suffix in (".svg", ".md", ".tex", ".html", ".json")]
    assert {path.suffix for path in files} == {".svg", ".md", ".tex", ".html", ".json"}
    for path in files:
        assert shown(path.read_text()), path
    for path in output.rglob("*.svg"):
        xml.parse(path)


@pytest.mark.parametrize("command", ["report", "rescore"])
def test_control_characters_of_paths_are_printed_escaped(tmp_path, capsys, command):
    folder = tmp_path / "a\x1b[31m\nb"
    assert main([command, str(folder), *(["--output", "r"] if command == "report" else [])]) == 2
    captured = capsys.readouterr()
    assert "a\\x1b[31m\\nb" in captured.err
    assert shown(captured.out + captured.err)
    assert len(captured.err.splitlines()) == 1


@pytest.mark.slow
def test_markup_in_names_is_text_in_the_tables(tmp_path):
    names = ["[link](http://a.b)", "![image](http://a.b/c.png)", "# heading", "<h1>html</h1>", "www.a.b http://a.b `c`"]
    for number in range(len(names)):
        write_run(tmp_path / str(number), {"arc": answers(60, seed=number)}, {"pretrained": "m"})
    labels = [word for name in names for word in ("--label", name)]
    folders = [tmp_path / str(number) for number in range(len(names))]
    assert report(*folders, *labels, "--output", tmp_path / "report") == 0
    text = (tmp_path / "report" / "tables.md").read_text()
    page = markdown.markdown(text, extensions=["tables"])
    assert not re.search(r"<(a|img|code|em|strong)\b", page)
    assert re.findall("<h1>(.*?)</h1>", page) == ["Calibration report"]
    plain = re.sub("<[^>]*>", "", page).replace("&lt;", "<").replace("&gt;", ">")
    for name in names:
        # This library keeps some of the backslashes that CommonMark removes.
        assert name in plain.replace("\\", "")
    # GitHub makes links of addresses that stand alone.
    assert not re.search(r"http://|www\.", text)


@pytest.mark.slow
def test_tasks_whose_names_differ_in_one_sign_have_figures_of_their_own(tmp_path):
    names = ("a b", "a_b", "a:b")
    for number, name in enumerate(names):
        folder = write_run(tmp_path / "run" / str(number), {"t": answers(60, seed=number)}, {"pretrained": "m"})
        (samples,) = folder.glob("samples_*.jsonl")
        (results,) = folder.glob("results_*.json")
        text = results.read_text().replace('"t"', json.dumps(name))
        results.write_text(text)
        samples.rename(samples.with_name(samples.name.replace("samples_t_", f"samples_{name}_")))
    assert report(tmp_path / "run", "--output", tmp_path / "report") == 0
    figures = [path.name for path in (tmp_path / "report" / "figures").glob("*_reliability_*.svg")]
    assert len(figures) == 3
    assert any(name.startswith("a_b_reliability_") for name in figures)
