import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.winrate import alpaca
from calibtune.winrate.length import length_controlled

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval" / "annotations.json"
needs_recorded = pytest.mark.skipif(not RECORDED.is_file(), reason=f"no recorded annotations at {RECORDED}")


def rows(*preferences, **more):
    return [
        {"instruction": f"question {i}", "preference": p, "generator_1": "base", "generator_2": "tuned", **more}
        for i, p in enumerate(preferences)
    ]


def save(path, value):
    path.write_text(json.dumps(value))
    return path


@needs_recorded
def test_recorded_annotations_reproduce_the_published_win_rate(tmp_path, capsys):
    assert main(["winrate", "alpaca-eval", "--annotations", str(RECORDED), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "winrate_alpaca_eval.json").read_text())
    assert found["per_cent"]["win_rate"] == pytest.approx(29.92, abs=0.005)
    assert found["per_cent"]["standard_error"] == pytest.approx(1.39, abs=0.005)
    assert found["win_rate"] == pytest.approx(0.2992, abs=0.00005)
    assert found["low"] < 0.2992 < found["high"]
    assert (found["n"], found["baseline"]) == (805, "gpt4_1106_preview")
    assert "29.92 % (standard error 1.39)" in capsys.readouterr().out


@needs_recorded
def test_recorded_annotations_need_neither_torch_nor_network(tmp_path):
    # A child process, since tests beside this one have loaded torch.
    script = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from calibtune.__main__ import main\n"
        f"code = main(['winrate', 'alpaca-eval', '--annotations', {str(RECORDED)!r}, '--output', {str(tmp_path)!r}])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "29.92" in done.stdout


def test_preference_is_score_plus_one_and_zero_is_a_tie():
    pairs = alpaca.judged(rows(1, 2, 1.5, 0, "1.25"), "here")
    assert list(pairs.scores.values()) == [0.0, 1.0, 0.5, 0.5, 0.25]
    assert alpaca.published_rate(pairs).win_rate == pytest.approx(0.45)


def test_pairs_without_a_verdict_are_skipped_and_noted():
    pairs = alpaca.judged(rows(2, None, float("nan"), -1, 1), "here")
    assert len(pairs.unjudged) == 3
    result = alpaca.result(pairs, length_controlled(pairs))
    assert (result.rate.n, result.rate.win_rate) == (2, 0.5)
    assert "3 of 5 pairs have no verdict" in result.note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is empty"),
        (rows(1) + rows(2), "more than once"),
        (rows(7), "not in [1, 2]"),
        (rows("yes"), "not in [1, 2]"),
        ([{"instruction": "q"}], "has no preference"),
        ([*rows(1), {"instruction": "x", "preference": 1, "generator_2": "other"}], "annotations of one model"),
    ],
)
def test_invalid_annotations_are_refused(tmp_path, content, said, capsys):
    path = save(tmp_path / "annotations.json", content)
    assert main(["winrate", "alpaca-eval", "--annotations", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error


def test_truncated_annotations_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows(1, 2))[:-9])
    with pytest.raises(UserError, match="is not JSON"):
        alpaca.read_annotations(path)


def test_alpaca_eval_does_not_change_the_root_log_level():
    before = logging.getLogger().level
    alpaca.published_rate(alpaca.judged(rows(1, 2), "here"))
    assert logging.getLogger().level == before


def test_missing_alpaca_eval_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "alpaca_eval", None)
    path = save(tmp_path / "annotations.json", rows(1, 2))
    assert main(["winrate", "alpaca-eval", "--annotations", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'calibtune[winrate]'" in capsys.readouterr().err


def test_compared_runs_are_paired_and_need_the_same_reference(tmp_path, capsys):
    mine = save(tmp_path / "mine.json", rows(2, 2, 1, 2))
    base = save(tmp_path / "base.json", [{**row, "generator_2": "base model"} for row in rows(1, 2, 1, 1)])
    other = save(tmp_path / "other.json", [{**row, "generator_1": "another"} for row in rows(1, 2, 1, 1)])
    command = ["winrate", "alpaca-eval", "--annotations", str(mine), "--output", str(tmp_path / "out"), "--compare"]
    assert main([*command, str(base)]) == 0
    found = json.loads((tmp_path / "out" / "winrate_alpaca_eval.json").read_text())
    assert (found["difference"], found["shared"], found["compared_with"]) == (0.5, 4, "base model")
    assert main([*command, str(other)]) == 2
    assert "against another, not base" in capsys.readouterr().err
