import hashlib
import json
import math

import numpy as np
import pytest
import yaml
from harness import TASKS, FakeLM, evaluate, manager

from harness_ext.errors import UserError
from harness_ext.letters import Letter
from harness_ext.prompts import doc_to_text
from harness_ext.world.facts import ENTITIES, OPTIONS, RELATIONS, facts
from harness_ext.world.questions import TEST, TRAIN, ask, draw, splits
from harness_ext.world.scoring import process_results
from harness_ext.world.theory import true_calibration_error


def chi_square(observed, expected):
    return float(((observed - expected) ** 2 / expected).sum())


def letters(*probabilities):
    return [Letter(p, math.log(p), math.log(p) - 1) for p in probabilities]


def test_facts_have_four_values_and_probabilities_that_sum_to_1():
    assert len(facts()) == len(ENTITIES) * len(RELATIONS) == 240
    for fact in facts():
        assert len(set(fact.values)) == len(fact.p_star) == OPTIONS
        assert set(fact.values) <= set(fact.relation.values)
        assert sum(fact.p_star) == pytest.approx(1, abs=1e-12)
        assert min(fact.p_star) > 0
        assert sum(fact.phrasing_weights) == pytest.approx(1)


def test_values_and_entities_are_distinct_words():
    words = [value for relation in RELATIONS for value in relation.values] + list(ENTITIES)
    assert len(set(words)) == len(words)


def test_facts_range_from_near_uniform_to_near_certain():
    tops = np.array([max(fact.p_star) for fact in facts()])
    assert tops.min() < 0.35
    assert tops.max() > 0.99
    assert np.histogram(tops, bins=7, range=(0.3, 1.0))[0].min() >= 8


def test_labels_follow_p_star():
    fact = next(fact for fact in facts() if max(fact.p_star) < 0.5)
    rng = np.random.RandomState(0)
    labels = []
    for _ in range(100):  # all 72 questions of one fact, a hundred times
        labels += [doc["choices"][doc["gold"]] for doc in draw([fact], 72, rng)]
    observed = np.array([labels.count(value) for value in fact.values])
    expected = np.array(fact.p_star) * len(labels)
    assert chi_square(observed, expected) < 16.3  # 0.1 % point, 3 degrees of freedom
    assert chi_square(observed, np.full(OPTIONS, len(labels) / OPTIONS)) > 16.3


def test_labels_of_every_split_follow_p_star():
    for docs in splits().values():
        given = np.array([doc["p_star"][doc["gold"]] for doc in docs])
        expected = np.array([np.square(doc["p_star"]).sum() for doc in docs])
        assert abs(given.mean() - expected.mean()) < 4 * given.std() / math.sqrt(len(docs))


def test_options_are_shuffled():
    for docs in splits().values():
        golds = np.bincount([doc["gold"] for doc in docs], minlength=OPTIONS)
        assert chi_square(golds, np.full(OPTIONS, len(docs) / OPTIONS)) < 16.3
        assert len({tuple(doc["choices"]) for doc in docs if doc["fact"] == docs[0]["fact"]}) > 5


def test_p_star_is_permuted_with_the_options():
    fact = facts()[0]
    doc = ask(fact, 1, (2, 0, 3, 1), gold=3)
    assert dict(zip(doc["choices"], doc["p_star"], strict=True)) == dict(zip(fact.values, fact.p_star, strict=True))
    assert doc["choices"][doc["gold"]] == fact.values[3]
    assert doc["gold"] == 2


def test_train_and_test_share_facts_but_no_questions():
    shown = {name: [doc_to_text(doc) for doc in docs] for name, docs in splits().items()}
    assert {name: len(texts) for name, texts in shown.items()} == {"train": TRAIN, "test": TEST, "out_domain": TEST}
    everything = [text for texts in shown.values() for text in texts]
    assert len(set(everything)) == len(everything)
    asked = {name: {doc["fact"] for doc in docs} for name, docs in splits().items()}
    assert asked["test"] <= asked["train"]
    assert not asked["out_domain"] & asked["train"]


def test_out_of_domain_options_are_not_in_the_training_set():
    trained = {choice for doc in splits()["train"] for choice in doc["choices"]}
    assert not trained & {choice for doc in splits()["out_domain"] for choice in doc["choices"]}


def test_phrasings_and_facts_have_unequal_frequencies():
    docs = splits()["train"]
    counts = np.array(sorted(np.unique([doc["fact"] for doc in docs], return_counts=True)[1]))
    assert counts[-20:].mean() > 2 * counts[:20].mean()
    style = [doc["question"].startswith("What is") for doc in docs if doc["fact"].endswith(f"of {ENTITIES[0]}")]
    habit = facts()[0].phrasing_weights[1]
    assert abs(np.mean(style) - habit) < abs(np.mean(style) - 1 / 3)


def test_questions_match_the_shipped_checkpoints():
    # The shipped models were trained on these questions; an update of numpy must not change them.
    text = json.dumps([[doc_to_text(doc), doc["gold"]] for docs in splits().values() for doc in docs])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f271ace5b78e7a0c"


def test_drawing_too_many_questions_is_refused():
    with pytest.raises(ValueError, match="73 questions wanted, but 1 facts allow only 72"):
        draw(facts()[:1], 73, np.random.RandomState(0))


def test_true_calibration_error_is_the_mean_l1_distance():
    p = [[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]
    q = [[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]
    assert true_calibration_error(p, q) == pytest.approx((0.3 + 0.2 + 0.1 + 0.0) / 2)
    assert true_calibration_error([[1.0, 0.0]], [[0.0, 1.0]]) == 2
    assert true_calibration_error(q, q) == 0


@pytest.mark.parametrize("q", [[[0.5, 0.5]], [], [[0.2, 0.3, 0.5], [0.1, 0.2, 0.7]]])
def test_true_calibration_error_refuses_mismatched_shapes(q):
    with pytest.raises(UserError, match="shape"):
        true_calibration_error([[0.5, 0.5], [0.5, 0.5]], q)


def test_acc_true_uses_p_star_instead_of_the_drawn_label():
    doc = {"question": "?", "choices": list("wxyz"), "gold": 2, "p_star": [0.1, 0.3, 0.2, 0.4]}
    items = process_results(doc, letters(0.1, 0.6, 0.2, 0.1))
    assert items["acc"] == 0
    assert items["acc_true"] == 0.3
    assert items["acc_star"] == 0.4
    assert items["tce"] == pytest.approx(0.3 + 0.3)
    assert items["conf_ece_10"] == ([0.1, 0.6, 0.2, 0.1], 2)


@pytest.mark.parametrize("p_star", [None, [0.5, 0.5]])
def test_question_without_p_star_is_refused(p_star):
    doc = {"question": "Who?", "choices": list("wxyz"), "gold": 2, "p_star": p_star}
    with pytest.raises(UserError, match=r"'Who\?' has 4 options and p\*"):
        process_results(doc, letters(0.1, 0.6, 0.2, 0.1))


def test_world_tasks_add_three_metrics_to_the_letter_tasks():
    read = lambda name: yaml.safe_load((TASKS / name).read_text().replace("!function ", ""))["metric_list"]  # noqa: E731
    ours, common = read("_world"), read("_letters")
    assert ours[: len(common)] == common
    assert [metric["metric"] for metric in ours[len(common) :]] == ["tce", "acc_true", "acc_star"]


def test_world_tasks_load_with_their_splits():
    tasks = manager().load(["mc_calib_world", "mc_calib_world_ood"])["tasks"]
    inside, outside = tasks["mc_calib_world"], tasks["mc_calib_world_ood"]
    assert len(inside.eval_docs) == len(outside.eval_docs) == TEST
    assert len(inside.training_docs()) == TRAIN
    assert not outside.has_training_docs()
    assert inside.eval_docs[0] == splits()["test"][0]


def test_model_that_knows_p_star_has_zero_tce_and_reaches_acc_star():
    truth = {doc_to_text(doc): doc for doc in splits()["test"]}

    def answer(context, continuation):
        doc = truth[context[context.index(".\n\n") + 3 :]]
        return math.log(doc["p_star"]["ABCD".index(continuation.strip())]), False

    results = evaluate(["mc_calib_world"], FakeLM(answer))["results"]["mc_calib_world"]
    assert results["tce,none"] == pytest.approx(0, abs=1e-9)
    assert results["acc_true,none"] == pytest.approx(results["acc_star,none"])
    assert results["conf_ece_10,none"] < 0.035
    assert abs(results["acc,none"] - results["acc_star,none"]) < 0.03


def test_tce_of_a_constant_model_by_hand():
    sure = np.log([0.94, 0.03, 0.02, 0.01]).tolist()
    results = evaluate(
        ["mc_calib_world_ood"], FakeLM(lambda _, letter: (sure["ABCD".index(letter.strip())], False)), limit=50
    )["results"]["mc_calib_world_ood"]
    docs = splits()["out_domain"][:50]
    expected = np.mean([np.abs(np.exp(sure) - doc["p_star"]).sum() for doc in docs])
    assert results["tce,none"] == pytest.approx(expected)
    assert results["acc_true,none"] == pytest.approx(np.mean([doc["p_star"][0] for doc in docs]))
