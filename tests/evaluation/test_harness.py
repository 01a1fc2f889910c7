import importlib
import io
import subprocess

import pytest

from calibtune.bar import Bar
from calibtune.evaluation import harness


@pytest.mark.parametrize(("module", "name"), harness.REPLACED)
def test_lm_eval_still_has_what_is_replaced_and_gets_it_back(module, name):
    theirs = getattr(importlib.import_module(module), name)
    with harness.replaced(harness.REPLACED):
        assert getattr(importlib.import_module(module), name) is harness.REPLACED[module, name]
    assert getattr(importlib.import_module(module), name) is theirs


def test_the_environment_has_lm_evals_own_keys():
    from lm_eval.loggers.utils import add_env_info

    ours, theirs = {}, {}
    harness.environment_info(ours)
    add_env_info(theirs)
    assert ours.keys() == theirs.keys()
    assert all(ours[key] == theirs[key] for key in ours.keys() - {"pretty_env_info"})


def test_the_commit_is_none_outside_a_repository_without_a_word(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert harness.commit() is None
    assert capfd.readouterr() == ("", "")


def test_the_commit_of_a_repository_is_what_lm_eval_records(tmp_path, monkeypatch):
    from lm_eval.loggers.utils import get_git_commit_hash

    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert harness.commit() == get_git_commit_hash() is not None


def test_the_bars_rate_leaves_the_first_batch_out(monkeypatch):
    now = [0.0]
    bar = Bar(total=100, delay=0, mininterval=0, file=io.StringIO())
    monkeypatch.setattr(bar, "_time", lambda: now[0])
    now[0] = 50.0  # the first batch of ten is over after 50 s, the next ones after 1 s each
    for _ in range(3):
        for _ in range(10):
            bar.update()
        now[0] += 1.0
    assert bar.format_dict["elapsed"] == 3.0
    bar.close()
