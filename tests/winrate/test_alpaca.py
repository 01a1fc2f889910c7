import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.winrate import alpaca, length
from calibtune.winrate.length import FILE, REPOSITORY, instructions_digest, length_controlled

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
def test_the_published_rate_and_standard_error_come_out_of_the_recorded_annotations(tmp_path, capsys):
    assert main(["winrate", "alpaca-eval", "--annotations", str(RECORDED), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "winrate_alpaca_eval.json").read_text())
    assert found["per_cent"]["win_rate"] == pytest.approx(29.92, abs=0.005)
    assert found["per_cent"]["standard_error"] == pytest.approx(1.39, abs=0.005)
    assert found["win_rate"] == pytest.approx(0.2992, abs=0.00005)
    assert found["low"] < 0.2992 < found["high"]
    assert (found["n"], found["baseline"]) == (805, "gpt4_1106_preview")
    assert "29.92 % (standard error 1.39)" in capsys.readouterr().out


@needs_recorded
def test_recorded_annotations_need_neither_torch_nor_a_network(tmp_path):
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


def test_a_preference_is_the_model_s_score_plus_one_and_zero_is_a_draw():
    pairs = alpaca.judged(rows(1, 2, 1.5, 0, "1.25"), "here")
    assert list(pairs.scores.values()) == [0.0, 1.0, 0.5, 0.5, 0.25]
    assert alpaca.published_rate(pairs).win_rate == pytest.approx(0.45)


def test_pairs_without_a_readable_verdict_are_left_out_and_said():
    pairs = alpaca.judged(rows(2, None, float("nan"), -1, 1), "here")
    assert len(pairs.unjudged) == 3
    result = alpaca.result(pairs)
    assert (result.rate.n, result.rate.win_rate) == (2, 0.5)
    assert "3 of 5 pairs have no verdict" in result.note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is empty"),
        (rows(1) + rows(2), "more than once"),
        (rows(7), "not in [1, 2]"),
        (rows("yes"), "not in [1, 2]"),
        ([{"instruction": "q"}], "'preference'"),
        ([*rows(1), {"instruction": "x", "preference": 1, "generator_2": "other"}], "annotations of one model"),
    ],
)
def test_annotations_that_would_give_a_wrong_rate_are_refused(tmp_path, content, said, capsys):
    path = save(tmp_path / "annotations.json", content)
    assert main(["winrate", "alpaca-eval", "--annotations", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error


def test_a_cut_off_file_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows(1, 2))[:-9])
    with pytest.raises(UserError, match="not whole JSON"):
        alpaca.read_annotations(path)


def test_using_alpaca_eval_leaves_the_root_logger_s_level_alone():
    before = logging.getLogger().level
    alpaca.published_rate(alpaca.judged(rows(1, 2), "here"))
    assert logging.getLogger().level == before


def test_no_length_controlled_rate_of_other_instructions_and_it_is_said():
    result = alpaca.result(alpaca.judged(rows(1, 2), "here"))
    assert result.summary()["length_controlled_win_rate"] is None
    assert "no length-controlled rate: it needs AlpacaEval's 805" in result.note


@pytest.fixture
def lengthy(monkeypatch):
    """Judgments of 805 made-up instructions, which stand in for AlpacaEval's."""
    pairs = longer_is_better()
    monkeypatch.setattr(length, "INSTRUCTIONS", instructions_digest(pairs))
    return pairs


def longer_is_better(count=805):
    generator = np.random.default_rng(0)
    longer = generator.integers(0, 2, count)
    # The judge simply prefers the longer answer: all of the raw advantage is length.
    return alpaca.judged(
        [
            {
                "instruction": f"q{i}",
                "preference": 1.9 if more else 1.4,
                "output_1": "word " * 20,
                "output_2": "word " * (60 if more else 15),
            }
            for i, more in enumerate(longer)
        ],
        "here",
    )


def test_without_the_regression_s_data_the_length_controlled_rate_is_said_to_be_missing(tmp_path, monkeypatch, lengthy):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = length_controlled(lengthy)
    assert found.win_rate is None
    assert "hf download tatsu-lab/alpaca_eval df_gamed.csv" in found.said


def test_length_controlled_rate_comes_from_alpaca_eval_s_regression_where_its_data_are_cached(
    tmp_path, monkeypatch, lengthy
):
    import pandas as pd

    generator = np.random.default_rng(0)
    gamed = [
        {
            "model": name,
            "index": i,
            "preference": 0.5 + shift / 4,
            "std_delta_len": -shift + generator.normal() / 4,
            "instruction_difficulty": generator.normal() / 10,
            "not_gamed_baseline": False,
        }
        for name, shift in (("concise", -1), ("verbose", 1))
        for i in range(805)
    ]
    folder = tmp_path / f"datasets--{REPOSITORY.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    pd.DataFrame(gamed).to_csv(snapshot / FILE, index=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    pairs = lengthy
    found = length_controlled(pairs)
    assert alpaca.published_rate(pairs).win_rate > 0.6
    assert found.win_rate is not None
    assert found.win_rate < alpaca.published_rate(pairs).win_rate - 0.02
    assert "by alpaca-eval's regression" in found.said


@needs_recorded
def test_the_recorded_instructions_are_those_that_the_regression_knows():
    pairs = alpaca.read_annotations(RECORDED)
    assert instructions_digest(pairs) == length.INSTRUCTIONS
    shuffled = alpaca.judged([*pairs.rows[1:], pairs.rows[0]], "here")
    assert "it needs AlpacaEval's 805" in length_controlled(shuffled).said


def test_without_alpaca_eval_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "alpaca_eval", None)
    path = save(tmp_path / "annotations.json", rows(1, 2))
    assert main(["winrate", "alpaca-eval", "--annotations", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'calibtune[winrate]'" in capsys.readouterr().err


def test_recorded_runs_are_compared_question_by_question_if_against_one_reference(tmp_path, capsys):
    mine = save(tmp_path / "mine.json", rows(2, 2, 1, 2))
    base = save(tmp_path / "base.json", [{**row, "generator_2": "base model"} for row in rows(1, 2, 1, 1)])
    other = save(tmp_path / "other.json", [{**row, "generator_1": "another"} for row in rows(1, 2, 1, 1)])
    command = ["winrate", "alpaca-eval", "--annotations", str(mine), "--output", str(tmp_path / "out"), "--compare"]
    assert main([*command, str(base)]) == 0
    found = json.loads((tmp_path / "out" / "winrate_alpaca_eval.json").read_text())
    assert (found["difference"], found["shared"], found["compared_with"]) == (0.5, 4, "base model")
    assert main([*command, str(other)]) == 2
    assert "against another, not base" in capsys.readouterr().err
