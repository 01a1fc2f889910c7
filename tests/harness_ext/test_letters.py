import math

import numpy as np
import pytest

from harness_ext.errors import UserError
from harness_ext.letters import Letter, LetterSoftmax

DOCS = [{"question": "first"}, {"question": "second"}]


def apply(rows, docs=None, temperature=1.0):
    docs = docs or [{"question": str(i)} for i in range(len(rows))]
    resps = [[(value, False)] for row in rows for value in row]
    return LetterSoftmax(temperature).apply(resps, [doc for doc, row in zip(docs, rows, strict=True) for _ in row])


def test_each_question_is_normalized_over_its_own_letters():
    letters = apply([[-1.0, -2.0], [-3.0, -1.0, -0.5]])
    expected = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]
    assert [x.probability for x in letters[:2]] == pytest.approx(expected, abs=1e-15)
    assert sum(x.probability for x in letters[2:]) == pytest.approx(1, abs=1e-15)
    assert [x.loglikelihood for x in letters] == [-1.0, -2.0, -3.0, -1.0, -0.5]
    assert all(math.exp(x.log_probability) == pytest.approx(x.probability, rel=1e-14) for x in letters)


def test_equal_documents_that_are_two_questions_stay_two():
    doc = {"question": "same"}
    assert sum(x.probability for x in apply([[-1.0, -2.0], [-1.0, -2.0]], [doc, dict(doc)])) == pytest.approx(2)


def test_the_temperature_divides_the_log_likelihoods():
    hot, cold = apply([[-1.0, -3.0]], temperature=2.0), apply([[-0.5, -1.5]])
    assert [x[:2] for x in hot] == [x[:2] for x in cold]
    assert [x.loglikelihood for x in hot] == [-1.0, -3.0]


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, "2", True, None])
def test_an_unusable_temperature_is_quoted(temperature):
    with pytest.raises(UserError, match=f"temperature {temperature!r}"):
        LetterSoftmax(temperature)


@pytest.mark.parametrize("bad", [math.nan, -math.inf, None, "x"])
def test_a_log_likelihood_that_is_no_finite_number_names_question_and_value(bad):
    with pytest.raises(UserError, match=rf"\[\({bad!r}, False\)\].*'second'"):
        apply([[-1.0, -2.0], [-1.0, bad]], DOCS)


@pytest.mark.parametrize("resp", [[], ["text"], [None], [[]], [()]])
def test_a_backend_that_returns_no_log_likelihood_is_refused(resp):
    with pytest.raises(UserError, match="no finite log-likelihood"):
        LetterSoftmax().apply([[(-1.0, True)], resp], [DOCS[0]] * 2)


def test_a_backend_with_one_value_for_every_letter_is_refused():
    with pytest.raises(UserError, match=r"all letters of each of the 2 questions .*-1\.5"):
        apply([[-1.5, -1.5], [-2.0, -2.0, -2.0]])


def test_two_letters_that_always_tie_share_a_token():
    rows = [[-1.0 - i, -2.0, -2.0, -3.0] for i in range(10)]
    with pytest.raises(UserError, match="letters B and C have the same log-likelihood in all 10"):
        apply(rows)
    assert len(apply(rows[:9])) == 36  # so few may tie in half precision


def test_one_tie_less_is_no_shared_token():
    rows = [[-1.0, -2.0, -2.0] for _ in range(20)] + [[-1.0, -2.0, -2.5]]
    assert len(apply(rows)) == 63


def test_a_value_that_stands_for_an_unscored_letter_is_refused():
    with pytest.raises(UserError, match=r"letter B of question 1 the log-likelihood -9999\.0"):
        apply([[-1.0, -2.0], [-1.0, -9999.0]])


def test_letters_that_sum_to_more_than_one_are_warned_of(caplog):
    apply([[-3.0, -2.0], [-0.1, -0.2]])
    assert "question 1: its letters' probabilities sum to 1.724" in caplog.text


def test_a_thousand_nats_apart_is_no_overflow():
    letters = apply([[-1000.0, -1.0]])
    assert letters[0] == Letter(0.0, -999.0, -1000.0)
    assert np.isfinite([x.log_probability for x in letters]).all()


def test_without_a_temperature_there_is_none():
    assert LetterSoftmax().temperature == 1.0


def test_responses_and_questions_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        LetterSoftmax().apply([[(-1.0, True)], [(-2.0, True)]], [DOCS[0]] * 3)


def test_a_repeated_last_letter_is_no_order_of_its_own():
    letters = LetterSoftmax().apply([[(-1.0, True)], [(-2.0, False), (-2.0, False)]], [DOCS[0]] * 2)
    assert [x.loglikelihood for x in letters] == [-1.0, -2.0]


def test_ties_are_warned_of_in_questions_with_fewer_letters_and_not_where_a_server_did_not_show_one(caplog):
    docs = [DOCS[0]] * 2 + [DOCS[1]] * 3
    flags = [False] * 5
    for flags[1] in (False, None):
        caplog.clear()
        LetterSoftmax().apply(list(zip(zip([-1.0, -1.0, -1.0, -2.0, -3.0], flags, strict=True))), docs)
        assert ("1 of 2 questions have letters tied for first place" in caplog.text) == (flags[1] is False)


def test_letters_that_a_server_never_showed_are_no_shared_token():
    docs = [doc for doc in ({"question": str(i)} for i in range(10)) for _ in range(3)]
    letters = LetterSoftmax().apply([[(-0.1, True)], [(-4.0, None)], [(-4.0, None)]] * 10, docs)
    assert len(letters) == 30
