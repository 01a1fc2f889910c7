from pathlib import Path

import lm_eval
import pytest
from board_files import board, leaderboard, rows_of
from harness import enter_mirror, evaluate, save
from tiny import save_tiny, write_arc_mirror

STOCK = Path(lm_eval.__file__).parent / "tasks" / "arc"


@pytest.mark.slow
def test_a_stock_task_of_the_harness_is_ranked(tmp_path, monkeypatch):
    models = [save_tiny(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    enter_mirror(write_arc_mirror(tmp_path / "hub"), monkeypatch)
    accuracy = {}
    for model in models:
        run = evaluate(["arc_challenge"], model, folders=[STOCK])
        accuracy[model.name] = run["results"]["arc_challenge"]["acc,none"]
        save(run, tmp_path / "out" / model.name)
    assert leaderboard(tmp_path / "out", "--output", tmp_path / "board") == 0
    found = board(tmp_path / "board")
    (table,) = found["tables"]
    assert (table["name"], table["questions"]) == ("arc_challenge", 24)
    assert {label: row["numbers"]["acc"] for label, row in rows_of(table).items()} == pytest.approx(accuracy)
    assert [model["size"] for model in found["models"]] == [found["models"][0]["size"]] * 2
    assert found["models"][0]["size"] > 1000
