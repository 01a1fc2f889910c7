import hashlib
import random
from pathlib import Path

import datasets
import pytest

from harness_ext import splits

SPLITS = ("train", "validation", "test")
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


def test_shares_of_train_and_test_are_rounded_and_shuffled_by_another_draw():
    drawn = splits.draw_pool({"a": pool("a", 3)}, 3, 2)
    assert (len(drawn["train"]), len(drawn["test"])) == (2, 1)
    assert drawn["train"] == sorted(drawn["train"], key=lambda doc: splits.rank(doc, 1))
    train = splits.draw_pool({"a": pool("a", 50)}, 30, 20)["train"]
    assert train == sorted(train, key=lambda doc: splits.rank(doc, 1))


def test_sizes_are_the_papers():
    assert (splits.TRAIN, splits.TEST, splits.MERGED, splits.MERGED_SHOTS) == (3000, 2000, 2000, 20)


def test_equal_shares_redistribute_from_small_sources():
    assert splits.equal_shares({"a": 3, "b": 50, "c": 8}, 30) == {"a": 3, "b": 19, "c": 8}
    assert splits.equal_shares({"a": 3, "b": 4}, 30) == {"a": 3, "b": 4}


def test_a_draw_is_ordered_by_a_hash_of_seed_and_normalized_contents():
    doc = {"question": "Why  ME?", "choices": ["é", "y"], "gold": 0}
    contents = '[0, "why me?", ["é", "y"], 0]'
    assert splits.rank(doc) == hashlib.sha256(contents.encode()).hexdigest()


def test_rows_that_cannot_be_scored_are_counted():
    rows = [{"question": q, "choices": ["x", "y"], "answer": a, "subject": "s"} for q, a in [("a", 1), ("b", 2)] * 2]
    documents, refused = splits.usable(datasets.Dataset.from_list(rows), splits.mmlu_row)
    assert ([doc["question"] for doc in documents], refused) == (["a", "a"], 2)


def medmcqa_rows(start, count, cop=0):
    return [
        {"question": f"med {i}", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": cop}
        for i in range(start, start + count)
    ]


def openbookqa_rows(start, count):
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    return [{"question_stem": f"book {i}", "choices": choices, "answerKey": "B"} for i in range(start, start + count)]


def test_indomain_pool_of_small_sources(monkeypatch, caplog):
    rows = {
        ("openlifescienceai/medmcqa", None, "train"): medmcqa_rows(0, 40) + medmcqa_rows(90, 2, cop=-1),
        ("openlifescienceai/medmcqa", None, "validation"): medmcqa_rows(40, 10),
        **{("allenai/openbookqa", "main", split): openbookqa_rows(i, 1) for i, split in enumerate(SPLITS)},
        # The first question is MedMCQA's, which comes before MMLU.
        **{
            ("cais/mmlu", "all", split): [
                {"question": question, "choices": ["a", "b"], "answer": 0, "subject": "s"}
                for question in ["med 0", f"mmlu {split}"]
            ]
            for split in ("test", "validation")
        },
    }

    def load(path, configuration, split, cache_dir):
        assert cache_dir is None
        return [datasets.Dataset.from_list(rows[path, configuration, name]) for name in split]

    monkeypatch.setattr(splits.datasets, "load_dataset", load)
    monkeypatch.setattr(splits, "TRAIN", 12)
    monkeypatch.setattr(splits, "TEST", 8)
    splits._indomain.cache_clear()
    drawn = splits.indomain()
    splits._indomain.cache_clear()
    assert {name: len(split) for name, split in drawn.items()} == {"train": 12, "test": 8}
    both = [doc for split in drawn.values() for doc in split]
    assert sorted(doc["source"] for doc in both) == ["medmcqa"] * 15 + ["mmlu"] * 2 + ["openbookqa"] * 3
    assert len({doc["question"] for doc in both}) == 20
    assert set(drawn["train"].column_names) == {"question", "choices", "gold", "source"}
    assert [record.getMessage() for record in caplog.records] == [
        "mc_calib_indomain: 2 rows of openlifescienceai/medmcqa train cannot be scored and are left out"
    ]


def test_merged_arc_draws_shots_and_questions_from_all_splits(monkeypatch):
    def load(path, configuration, cache_dir):
        assert (path, configuration, cache_dir) == ("allenai/ai2_arc", "ARC-Challenge", None)
        choices = {"text": ["a", "b"], "label": ["A", "B"]}
        return {
            split: datasets.Dataset.from_list(
                [{"question": f"{split} {i}", "choices": choices, "answerKey": "B"} for i in range(4)]
            )
            for split in SPLITS
        }

    monkeypatch.setattr(splits.datasets, "load_dataset", load)
    whole = splits.arc_merged()
    assert (len(whole["shots"]), len(whole["test"])) == (12, 0)
    monkeypatch.setattr(splits, "MERGED_SHOTS", 3)
    monkeypatch.setattr(splits, "MERGED", 7)
    cut = splits.arc_merged()
    assert cut["shots"]["question"][:] + cut["test"]["question"][:] == whole["shots"]["question"][:10]


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
