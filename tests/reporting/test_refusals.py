import pytest
from lm_eval_files import answers, write_run
from report_files import fails, report

from calibtune.results.samples import find_samples


def test_results_without_samples_suggest_log_samples(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, samples=False)
    message = fails(capsys, folder, "--output", tmp_path / "out")
    assert "--log_samples" in message
    assert str(folder) in message
    assert not (tmp_path / "out").exists()


def test_missing_folder_is_refused(tmp_path, capsys):
    assert f"{tmp_path / 'no'} does not exist" in fails(capsys, tmp_path / "no", "--output", tmp_path / "out")


def test_damaged_samples_file_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    path = find_samples(folder)[0]
    path.write_text(path.read_text()[:-30])
    assert "line 10 is not JSON" in fails(capsys, folder, "--output", tmp_path / "out")


def test_existing_report_is_kept_without_overwrite(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert "--overwrite" in fails(capsys, folder, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert report(folder, "--output", tmp_path / "out", "--overwrite") == 0
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_unreadable_runs_keep_the_existing_report(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("old")
    fails(capsys, tmp_path / "no", "--output", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "report.html").read_text() == "old"


def test_overwriting_the_runs_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    for output in (folder, tmp_path / "run", tmp_path):
        assert "give another folder" in fails(capsys, folder, "--output", output, "--overwrite")
    assert find_samples(folder)


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
def test_malformed_results_file_is_refused(tmp_path, capsys, part):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, **part)
    message = fails(capsys, folder, "--output", tmp_path / "out")
    assert next(iter(folder.glob("results_*.json"))).name in message
    assert message.count("\n") == 1
    assert "run the evaluation again" in message
    assert not (tmp_path / "out").exists()
