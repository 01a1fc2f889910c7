"""What is made of a server's replies."""

import json
import math

import pytest

from calibtune.endpoints.client import Malformed
from calibtune.models.served import ROUNDING, Conversation, Reply, read_reply


def completion(top, tokens=None):
    logprobs = {"top_logprobs": [top], "tokens": tokens or [None], "token_logprobs": [-9.0] if tokens else [None]}
    return json.dumps({"choices": [{"logprobs": logprobs}], "usage": {"prompt_tokens": 7}})


def chat(*pairs):
    listed = [{"token": token, "logprob": value} for token, value in pairs]
    return json.dumps({"choices": [{"logprobs": {"content": [{**listed[0], "top_logprobs": listed}]}}]})


def letters(text, names=(" A", " B"), stripped=False):
    stored = read_reply(text)
    return Reply(stored["top"], stored["token"], stored["prompt_tokens"]).letters(names, stripped)


def test_an_unseen_letter_is_bounded_by_the_last_shown_token_or_by_the_rest():
    seen, unseen = letters(completion({" A": math.log(0.5), "x": math.log(0.1)}))
    assert seen == (pytest.approx(math.log(0.5)), True, True)
    assert unseen.shown is False
    assert unseen.probability == pytest.approx(0.1)
    _, unseen = letters(completion({" A": math.log(0.9), "x": math.log(0.08)}))
    assert unseen.probability == pytest.approx(0.02 + ROUNDING)


def test_a_sampled_token_beside_the_top_ones_does_not_lower_the_bound():
    """vLLM puts the token that it answered with into the list, wherever it ranks."""
    _, unseen = letters(completion({" A": math.log(0.4), "x": math.log(0.2), "rare": -9.0}, ["rare"]))
    assert unseen.probability == pytest.approx(0.2)
    _, unseen = letters(completion({" A": math.log(0.4), "x": math.log(0.2)}, ["rare"]))
    assert unseen.probability == pytest.approx(0.2)


def test_tokens_that_read_alike_count_together_and_those_without_a_probability_not_at_all():
    pairs = (" A", math.log(0.3)), (" A", math.log(0.1)), (" B", -9999.0), (" C", None), (" D", math.inf)
    first, second = letters(chat(*pairs))
    assert first.probability == pytest.approx(0.4)
    assert not second.shown


def test_tokens_without_their_blank_are_found_where_blanks_are_no_matter():
    text = chat(("A", math.log(0.3)), ("B", math.log(0.2)))
    assert not any(letter.shown for letter in letters(text))
    assert [round(letter.probability, 6) for letter in letters(text, stripped=True)] == [0.3, 0.2]


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": None}, {"top_logprobs": None}])
def test_a_reply_without_log_probabilities_bounds_letters_by_one(logprobs):
    found = letters(json.dumps({"choices": [{"logprobs": logprobs}]}))
    assert found == [(0.0, False, False)] * 2


@pytest.mark.parametrize("text", ["", "[]", '{"choices": []}', '{"choices": [3]}', '{"choices": [{"logprobs": [1]}]}'])
def test_other_texts_are_no_replies(text):
    with pytest.raises(Malformed):
        read_reply(text)


def test_a_system_message_is_found_in_a_conversation_though_json_escapes_it():
    text = 'Say "A"\nor B'
    found = Conversation(json.dumps([{"role": "system", "content": text}]))
    assert text in found
    assert "C" not in found
