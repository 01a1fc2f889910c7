import json
from pathlib import Path

import numpy as np
import pytest
from tiny import save_tiny

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.winrate import arena, runs

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "arena_hard"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no Arena-Hard data at {REAL}")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def game(label):
    return None if label is None else {"score": label, "judgment": {"answer": "..."}, "prompt": []}


@pytest.fixture
def checkout(tmp_path):
    """Make a checkout with four questions, one with a line separator that str.splitlines() splits at."""
    texts = ["What is this?", "Options:", "Two\u2028lines, one answer", "Answer:"]
    rows = [{"uid": f"u{i}", "category": "arena-hard-v0.1", "cluster": "c", "prompt": t} for i, t in enumerate(texts)]
    write_lines(tmp_path / "arena" / "data" / "arena-hard-v0.1" / "question.jsonl", rows)
    return tmp_path / "arena"


def write_judgments(checkout, name, games, judge_name="gpt", **more):
    rows = [
        {"uid": uid, "category": "arena-hard-v0.1", "model": name, "baseline": "base", "games": list(map(game, pair))}
        | more
        for uid, pair in games.items()
    ]
    write_lines(checkout / "data" / "arena-hard-v0.1" / "model_judgment" / judge_name / f"{name}.jsonl", rows)


def test_verdicts_of_both_games_are_scored_for_the_model(checkout):
    write_judgments(
        checkout, "m", {"u0": ("B>A", "A>B"), "u1": ("A>B", "B>A"), "u2": ("A=B", "A=B"), "u3": ("A>B", "A>B")}
    )
    found = arena.read_verdicts(arena.open_bench(checkout), "m")
    assert found.scores == {"u0": 1.0, "u1": 0.0, "u2": 0.5, "u3": 0.5}
    assert set(found.weights.values()) == {2.0}
    assert (found.baseline, found.judge) == ("base", "gpt")


def test_clear_verdict_has_weight_three_as_in_arena_hard(checkout):
    games = {"u0": ("B>>A", "A>>B"), "u1": ("A>B", "B>A"), "u2": ("A>>B", "A=B"), "u3": ("A<<B", "B<A")}
    write_judgments(checkout, "m", games)
    result = runs.arena_result(arena.open_bench(checkout), "m", None, None, None)
    # Arena-Hard's list: second games, then inverted first games; clear verdicts count three times.
    verdicts = [*[1] * 3, *[1] * 3, 0, 0, 0.5, *[0] * 3, 1, *[1] * 3]
    assert result.rate.win_rate == pytest.approx(np.mean(verdicts))
    assert result.rate.n == 4


def test_questions_without_two_verdicts_are_skipped_and_noted(checkout):
    write_judgments(checkout, "m", {"u0": ("B>A", "A>B"), "u1": (None, "B>A"), "u2": ("A>B", None)})
    result = runs.arena_result(arena.open_bench(checkout), "m", None, None, None)
    assert (result.rate.n, result.rate.win_rate) == (1, 1.0)
    assert "2 questions without two verdicts" in result.note
    assert "1 questions are not judged yet" in result.note
    assert "no style control (use the tool's" in result.note


def test_game_without_a_label_is_unjudged(checkout):
    write_judgments(checkout, "m", {"u0": ("B>A", "A>B")})
    path = arena.open_bench(checkout).judgments("m")["gpt"]
    row = json.loads(path.read_text())
    row["games"][1]["score"] = None
    write_lines(path, [row])
    assert arena.read_verdicts(arena.open_bench(checkout), "m").unjudged == ("u0",)


@pytest.mark.parametrize(
    ("games", "more", "said"),
    [
        ({"u0": ("A>B", "maybe")}, {}, "'maybe' is not a verdict"),
        ({"u9": ("A>B", "A>B")}, {}, "u9 is not in question.jsonl"),
        ({"u0": ("A>B",)}, {}, "entry 0: games is "),
    ],
)
def test_malformed_judgments_are_refused(checkout, games, more, said):
    write_judgments(checkout, "m", games, **more)
    with pytest.raises(UserError, match=said):
        arena.read_verdicts(arena.open_bench(checkout), "m")


def test_question_judged_twice_is_refused(checkout):
    write_judgments(checkout, "m", {"u0": ("A>B", "A>B")})
    path = arena.open_bench(checkout).judgments("m")["gpt"]
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match="judged twice"):
        arena.read_verdicts(arena.open_bench(checkout), "m")


def test_judges_and_baselines_are_not_mixed(checkout):
    write_judgments(checkout, "m", {"u0": ("A>B", "A>B")})
    write_judgments(checkout, "m", {"u0": ("B>A", "A>B")}, judge_name="other")
    bench = arena.open_bench(checkout)
    with pytest.raises(UserError, match="gpt, other; choose one with --judge"):
        arena.read_verdicts(bench, "m")
    assert arena.read_verdicts(bench, "m", "other").scores == {"u0": 1.0}
    path = bench.judgments("m")["gpt"]
    write_lines(path, [json.loads(path.read_text()), json.loads(path.read_text()) | {"uid": "u1", "baseline": "b2"}])
    with pytest.raises(UserError, match="b2, base; choose one --category"):
        arena.read_verdicts(bench, "m", "gpt")


def test_comparison_is_paired_by_question(checkout, tmp_path, capsys):
    write_judgments(checkout, "tuned", {"u0": ("B>A", "A>B"), "u1": ("B>A", "A>B"), "u2": ("A>B", "B>A")})
    write_judgments(checkout, "base", {"u0": ("B>A", "B>A"), "u1": ("B>A", "B>A"), "u3": ("A>B", "B>A")})
    output = tmp_path / "out"
    command = ["winrate", "arena-hard", "--bench", str(checkout), "--name", "tuned", "--compare", "base"]
    assert main([*command, "--output", str(output)]) == 0
    found = json.loads((output / "winrate_arena_hard.json").read_text())
    assert (found["compared_with"], found["difference"], found["shared"]) == ("base", 0.5, 2)
    assert found["baseline"] == "base"
    assert "arena_hard" in capsys.readouterr().out


def test_several_benchmark_versions_need_a_choice(checkout):
    write_lines(checkout / "data" / "arena-hard-v2.0" / "question.jsonl", [{"uid": "a", "prompt": "b"}])
    with pytest.raises(UserError, match=r"several benchmarks \(data/arena-hard-v0.1, data/arena-hard-v2.0\)"):
        arena.open_bench(checkout)
    assert list(arena.open_bench(checkout / "data" / "arena-hard-v2.0").questions) == ["a"]


def test_folder_without_questions_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no question\.jsonl"):
        arena.open_bench(tmp_path)


def test_answers_are_written_for_arena_hard_and_scored_after_judging(checkout, tmp_path, capsys):
    model = save_tiny(tmp_path / "tiny")
    command = ["winrate", "arena-hard", "--bench", str(checkout), "--model", str(model), "--max-new-tokens", "8"]
    command += ["--name", "mine", "--batch-size", "2", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert "gen_judgment.py" in capsys.readouterr().out
    path = checkout / "data" / "arena-hard-v0.1" / "model_answer" / "mine.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [row["uid"] for row in rows] == ["u0", "u1", "u2", "u3"]
    assert rows[2]["messages"][0] == {"role": "user", "content": "Two\u2028lines, one answer"}
    assert not (tmp_path / "out" / "winrate_arena_hard.json").exists()

    write_judgments(checkout, "mine", {f"u{i}": ("A>B", "B>A") for i in range(4)})
    written = path.read_bytes()
    assert main(command) == 0
    assert path.read_bytes() == written
    found = json.loads((tmp_path / "out" / "winrate_arena_hard.json").read_text())
    assert (found["model"], found["win_rate"], found["n"]) == ("mine", 0.0, 4)


def test_different_answers_do_not_overwrite_existing_ones(checkout):
    bench = arena.open_bench(checkout)
    path = arena.write_answers(bench, "m", ["a", "b", "c", "d"])
    before = path.read_bytes()
    with pytest.raises(UserError, match="holds other answers"):
        arena.write_answers(bench, "m", ["a", "b", "c", "e"])
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="file name"):
        arena.write_answers(bench, "org/m", ["a", "b", "c", "d"])


@needs_real
def test_written_answers_match_arena_hards_format(tmp_path):
    (tmp_path / "question.jsonl").symlink_to(REAL / "question.jsonl")
    bench = arena.open_bench(tmp_path)
    assert len(bench.questions) == 500
    real = [json.loads(line) for line in (REAL / "gpt-4-0314.jsonl").open(encoding="utf-8")]
    texts = {row["uid"]: row["messages"][-1]["content"]["answer"] for row in real}
    path = arena.write_answers(bench, "gpt-4-0314", [texts[uid] for uid in bench.questions])
    written = [json.loads(line) for line in path.open(encoding="utf-8")]
    free = ("ans_id", "tstamp")
    by_uid = {row["uid"]: {k: v for k, v in row.items() if k not in free} for row in written}
    assert by_uid == {row["uid"]: {k: v for k, v in row.items() if k not in free} for row in real}
    for name in free:
        assert {type(row[name]) for row in written} == {type(row[name]) for row in real}
    assert {len(row["ans_id"]) for row in written} == {22}
    assert len({row["ans_id"] for row in written}) == 500


@needs_real
def test_win_rate_and_interval_on_the_real_questions(tmp_path):
    (tmp_path / "question.jsonl").symlink_to(REAL / "question.jsonl")
    bench = arena.open_bench(tmp_path)
    labels = list(arena.LABELS)
    generator = np.random.default_rng(0)
    rows = [
        {
            "uid": uid,
            "model": "m",
            "games": [game(labels[generator.integers(10)]), game(labels[generator.integers(10)])],
        }
        for uid in bench.questions
    ]
    write_lines(tmp_path / "model_judgment" / "j" / "m.jsonl", rows)
    result = runs.arena_result(bench, "m", None, None, None)
    assert (result.rate.n, result.baseline) == (500, "gpt-4-0314")
    assert result.rate.low < result.rate.win_rate < result.rate.high
    assert result.rate.high - result.rate.low == pytest.approx(3.92 * result.rate.standard_error, rel=0.1)
