import json

import pytest
from harness import enter_mirror
from tiny import write_paper_mirror

from calibtune.__main__ import main


@pytest.fixture
def command(model, tmp_path, monkeypatch):
    hub = enter_mirror(write_paper_mirror(tmp_path / "hub"), monkeypatch)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(hub / "cache"))

    def run(*words):
        return main(["reproduce", "--model", str(model), "--output", str(tmp_path / "out"), *words])

    return run


def test_dry_run_prints_each_command_with_hours_and_memory_and_runs_none(command, tmp_path, capsys):
    assert command("--dry-run", "--config", "paper") == 0
    *steps, total = capsys.readouterr().out.splitlines()
    assert len(steps) == 21
    assert all(" h, " in line and "GiB: python -m calibtune " in line for line in steps)
    assert "h one after the other on this device" in total
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tables", "1"), "--tables 1 is none of 2, 3, 4, 5"),
        (("--seeds=-1",), "--seeds -1 is below 0"),
        (("--learning-rate", "0"), "--learning-rate 0.0 is no rate"),
        (("--tables", "two"), "'two' is no list of whole numbers"),
        (("--judge", "gpt-4"), "--judge and --instructions"),
    ],
)
def test_misuse_is_refused_before_anything_runs(command, capsys, words, told):
    try:
        code = command(*words)
    except SystemExit as end:  # as argparse ends
        code = end.code
    assert code == 2
    assert told in capsys.readouterr().err


def in_this_process(step):
    assert main(list(step.words)) == 0


def test_an_interrupted_run_says_how_it_goes_on(command, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("calibtune.steps.run_step", interrupted)
    assert command("--tables", "2") == 130
    assert capsys.readouterr().err.endswith("calibtune: interrupted; the same command goes on where it stopped\n")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_tables_of_a_tiny_model_stand_beside_the_papers_and_a_second_run_repeats_nothing(
    command, tmp_path, monkeypatch, capfd
):
    # Processes of their own import all anew; tests/mending/test_mend.py has such.
    monkeypatch.setattr("calibtune.steps.run_step", in_this_process)
    assert command("--tables", "3,5") == 0
    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert "DPO, Llama-3.1-8B-Tulu (paper) | UltraFeedback" in text
    assert "Table 5: the same with 14 bins" in text
    rows = json.loads((tmp_path / "out" / "reproduction.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"base", "temperature", "label-smoothing", "cft", "rcft"}
    assert all(0 < row["conf_ece_14"]["floor"] < 1 for row in rows)
    page = (tmp_path / "out" / "reproduction.html").read_text()
    assert "Figures 3 and 5 to 8: reliability of the confidence; mc_calib_indomain" in page
    capfd.readouterr()
    assert command("--tables", "3,5") == 0
    assert capfd.readouterr().out.count("done before") == 12
