"""The page on own data is true: its shell blocks run as they stand."""

import json
import random
import re
import subprocess
from pathlib import Path

import pytest
from commands import offline, path_of_python

ROOT = Path(__file__).resolve().parents[2]
ALIGNED = ROOT / "calibtune" / "demo" / "checkpoints" / "aligned"


def write_rows(path, count, seed):
    """Questions with 3 to 5 options."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        gold = rng.randrange(3)
        choices = [str(number + shift) for shift in range(rng.choice([3, 4, 5]))]
        rows.append({"question": f"What is {number} plus {gold}, seed {seed}?", "choices": choices, "gold": gold})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.slow
def test_the_pages_commands_run(tmp_path):
    page = (ROOT / "docs" / "own-data.md").read_text("utf-8")
    run, _, task, used = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[:4]
    (tmp_path / "my_tasks").mkdir()
    write_rows(tmp_path / "quiz.jsonl", 120, 2)
    write_rows(tmp_path / "my_tasks" / "train.jsonl", 60, 0)
    write_rows(tmp_path / "my_tasks" / "test.jsonl", 30, 1)
    # The model is the reader's own. `doctor` refuses this one, which knows no words of these questions: left out.
    environment = offline(tmp_path / "cache") | {
        "M": str(ALIGNED),
        "PATH": path_of_python(),
    }
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{run.partition(chr(10))[2]}\n{task}\n{used}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report" / "report.html").is_file()
    (results,) = (tmp_path / "out" / "task-t").rglob("results_*.json")
    assert "conf_ece_10,scaled" in json.loads(results.read_text("utf-8"))["results"]["my_quiz_scaled"]
