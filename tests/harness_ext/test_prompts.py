import pytest

from harness_ext.errors import ScoringError
from harness_ext.prompts import LETTERS, check_choices, doc_to_choice, doc_to_text


def test_every_number_of_options_from_2_to_26_shows_the_letters_that_are_scored():
    for count in range(2, 27):
        doc = {"question": "Q?", "choices": [f"option {i}" for i in range(count)]}
        shown = [line[0] for line in doc_to_text(doc).splitlines() if line[1:3] == ". "]
        assert shown == doc_to_choice(doc) == list(LETTERS[:count])


@pytest.mark.parametrize("count", [0, 1, 27])
def test_other_numbers_of_options_are_refused(count):
    with pytest.raises(ScoringError, match=f"Q has {count} options"):
        check_choices([f"option {i}" for i in range(count)], "Q")


def test_an_empty_option_is_named():
    with pytest.raises(ScoringError, match=r"Q has an empty option B \(' '\)"):
        check_choices(["x", " "], "Q")


def test_a_repeated_option_is_named_with_both_letters():
    with pytest.raises(ScoringError, match=r"Q has the same option under A and C \('x'\)"):
        check_choices(["x", "y", "x"], "Q")


def test_the_prompt_itself_refuses_options_that_cannot_be_told_apart():
    with pytest.raises(ScoringError, match="Which"):
        doc_to_text({"question": "Which?", "choices": ["x", "x"]})


@pytest.mark.parametrize("choices", [None, 4])
def test_a_document_without_a_list_of_options_is_named(choices):
    with pytest.raises(ScoringError, match=rf"question '7' has no list of options \({choices}\)"):
        doc_to_text({"question": 7, "choices": choices})
