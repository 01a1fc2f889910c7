import json
import math

from calibtune.winrate.rates import Rate
from calibtune.winrate.results import Result, table, write


def test_write_makes_files_for_the_report_and_for_lm_eval(tmp_path):
    write(Result("alpaca_eval", "m", "b", Rate(0.3, math.nan, 0.2, 0.4, 1), "why", {"judge": "j"}), tmp_path)
    ours = json.loads((tmp_path / "winrate_alpaca_eval.json").read_text())
    assert {"benchmark", "model", "baseline", "win_rate", "standard_error", "low", "high", "n", "note"} <= ours.keys()
    assert (ours["win_rate"], ours["standard_error"], ours["per_cent"]["win_rate"]) == (0.3, None, 30.0)
    (theirs,) = tmp_path.glob("results_*.json")
    values = json.loads(theirs.read_text())["results"]["alpaca_eval"]
    assert values["win_rate,none"] == 0.3
    assert (values["win_rate_low,none"], values["win_rate_high,none"]) == (0.2, 0.4)


def test_table_shows_win_rate_and_standard_error():
    text = table(Result("arena_hard", "m", "b", Rate(0.415, 0.0125, 0.39, 0.44, 500), "the note"))
    row = next(line for line in text.splitlines() if "win_rate|" in line.replace(" ", ""))
    assert "0.415" in row
    assert "0.0125" in row
    assert "41.50 % (standard error 1.25)" in text
    assert "the note" in text
