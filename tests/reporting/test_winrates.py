import json

import pytest
from lm_eval_files import answers, win_lines, write_run
from report_files import BASE, CFT, fails, report

pytestmark = pytest.mark.usefixtures("undrawn")


def test_win_rate_table_has_differences(tmp_path):
    arc = answers(40)
    write_run(tmp_path / "base", {"arc": arc}, BASE, others={"ultrafeedback_winrate": win_lines(rate=0.5)})
    write_run(tmp_path / "cft", {"arc": arc}, CFT, others={"ultrafeedback_winrate": win_lines(rate=0.9)})
    judged = {"benchmark": "alpaca_eval", "model": "runs/cft", "baseline": "gpt4", "win_rate": 0.2992, "n": 805}
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "winrate_alpaca_eval.json").write_text(json.dumps({**judged, "low": 0.27, "high": 0.33}))
    folders = [tmp_path / "base", tmp_path / "cft", tmp_path / "judged"]
    assert report(*folders, "--output", tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["win_rates"]
    assert [(row["label"], row["baseline"]) for row in rows] == [
        *(2 * [("base-7b", "the rejected response"), ("cft", "the rejected response")]),
        ("cft", "gpt4"),
    ]
    assert rows[1]["difference"]["clear"]
    assert rows[1]["difference"]["questions"] == 200
    assert "<td>0.299<small>0.270–0.330</small></td>" in (tmp_path / "out" / "report.html").read_text()
    table = (tmp_path / "out" / "tables.md").read_text().split("## Win rates")[1]
    assert "| model | win rate | difference to base | benchmark | against | N | note |" in table
    assert "| cft | 0.299 (0.270–0.330) | – | alpaca\\_eval | gpt4 | 805 |  |" in table
    runs = table.split("## Runs")[1]
    assert "| method | model | adapter | folder |" in runs
    assert f"| cft | org/base-7b | runs/cft | {tmp_path}/cft/runs__cft |".replace("_", "\\_") in runs


def test_report_of_win_rates_alone(tmp_path):
    (tmp_path / "in").mkdir()
    record = {"benchmark": "arena_hard", "model": "m", "baseline": "gpt4", "win_rate": 0.4, "note": "made up"}
    (tmp_path / "in" / "winrate_arena_hard.json").write_text(json.dumps(record))
    assert report(tmp_path / "in", "--output", tmp_path / "out") == 0
    assert "arena\\_hard" in (tmp_path / "out" / "tables.md").read_text()


def test_win_rate_in_percent_is_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "winrate_x.json").write_text('{"benchmark": "x", "win_rate": 29.92}')
    assert "win_rate is 29.92" in fails(capsys, tmp_path / "in", "--output", tmp_path / "out")
