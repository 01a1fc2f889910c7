import numpy as np

from calibtune.results.pairs import matching_rows, question_keys
from calibtune.results.samples import Samples


def rows(hashes, gold):
    values = np.zeros((len(gold), 2))
    return Samples("t", "none", "file", values, np.array(gold), tuple(hashes), (), {}, values > 0, 1)


def test_repeated_question_has_two_keys():
    assert question_keys(rows("aab", [0, 0, 0])) == (("a", 0, 0), ("a", 0, 1), ("b", 0, 0))


def test_same_document_with_another_answer_does_not_match():
    a, b = question_keys(rows("ab", [0, 1])), question_keys(rows("ba", [1, 1]))
    assert [side.tolist() for side in matching_rows(a, b)] == [[1], [0]]


def test_questions_without_a_hash_match_nothing():
    a = question_keys(rows(["None"], [0]))
    assert matching_rows(a, question_keys(rows(["x"], [0])))[0].size == 0
