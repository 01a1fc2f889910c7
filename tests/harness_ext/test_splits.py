import random
from pathlib import Path

import pytest

from harness_ext import splits

HUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "hub"


def pool(name, count):
    return [{"question": f"{name} {i}", "choices": ["x", "y"], "gold": i % 2} for i in range(count)]


def test_draw_does_not_depend_on_row_order():
    rows = pool("q", 50)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert splits.distinct(rows, set()) == splits.distinct(shuffled, set()) != rows


def test_seed_changes_the_order():
    assert splits.distinct(pool("q", 50), set(), seed=1) != splits.distinct(pool("q", 50), set())


def test_questions_that_differ_in_case_spaces_or_punctuation_are_duplicates():
    rows = [{"question": q, "choices": ["x", "y"], "gold": 0} for q in ("Why  me?", "why me", "Why me:", "Who?")]
    assert len(splits.distinct(rows, set())) == 2
    assert splits.distinct(rows, {"whyme", "who"}) == []


def test_sources_have_equal_shares_of_train_and_test():
    pools = {name: pool(name, size) for name, size in {"a": 10, "b": 100, "c": 1000}.items()}
    drawn = splits.draw_pool(pools, 60, 40)
    assert {name: len(docs) for name, docs in drawn.items()} == {"train": 60, "test": 40}
    counts = {s: [sum(d["source"] == n for d in drawn[s]) for n in "abc"] for s in drawn}
    assert counts == {"train": [6, 27, 27], "test": [4, 18, 18]}
    assert not {d["question"] for d in drawn["train"]} & {d["question"] for d in drawn["test"]}


@pytest.mark.parametrize("split", ["train", "test"])
def test_first_questions_mix_all_sources(split):
    pools = {name: splits.distinct(pool(name, size), set()) for name, size in {"a": 200, "b": 2000}.items()}
    drawn = splits.draw_pool(pools, 200, 200)[split]
    # 30 are expected; a fair draw is outside 15 to 45 once in 10,000.
    assert 15 < sum(doc["source"] == "a" for doc in drawn[:60]) < 45


def test_too_few_rows_shrink_both_splits_proportionally():
    drawn = splits.draw_pool({"a": pool("a", 5), "b": pool("b", 5)}, 3000, 2000)
    assert (len(drawn["train"]), len(drawn["test"])) == (6, 4)


def test_equal_shares_redistribute_from_small_sources():
    assert splits.equal_shares({"a": 3, "b": 50, "c": 8}, 30) == {"a": 3, "b": 19, "c": 8}
    assert splits.equal_shares({"a": 3, "b": 4}, 30) == {"a": 3, "b": 4}


@pytest.mark.real
@pytest.mark.skipif(not HUB.is_dir(), reason="needs the data mirror ../shared/data/hub")
def test_indomain_pool_has_the_documented_counts(monkeypatch):
    monkeypatch.chdir(HUB)
    drawn = splits.indomain()
    questions = [splits.normalized(q) for split in drawn.values() for q in split["question"]]
    assert (len(drawn["train"]), len(drawn["test"]), len(set(questions))) == (3000, 2000, 5000)  # none is in both
    sources = {s: [drawn[s]["source"][:].count(name) for name in splits.SOURCES] for s in drawn}
    assert sources == {"train": [220, 1390, 1390], "test": [147, 927, 926]}
    merged = splits.arc_merged()
    assert (len(merged["shots"]), len(merged["test"])) == (20, 1098)
