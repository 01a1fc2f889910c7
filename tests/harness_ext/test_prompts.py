import pytest

from harness_ext.errors import UserError
from harness_ext.prompts import LETTERS, check_choices, doc_to_choice, doc_to_text


def test_prompt_shows_the_scored_letters_for_2_to_26_options():
    for count in range(2, 27):
        doc = {"question": "Q?", "choices": [f"option {i}" for i in range(count)]}
        shown = [line[0] for line in doc_to_text(doc).splitlines() if line[1:3] == ". "]
        assert shown == doc_to_choice(doc) == list(LETTERS[:count])


@pytest.mark.parametrize("count", [0, 1, 27])
def test_unsupported_number_of_options_is_refused(count):
    with pytest.raises(UserError, match=f"Q has {count} options"):
        check_choices([f"option {i}" for i in range(count)], "Q")


def test_empty_option_is_refused():
    with pytest.raises(UserError, match=r"Q has an empty option B \(' '\)"):
        check_choices(["x", " "], "Q")


def test_repeated_option_is_refused_with_both_letters():
    with pytest.raises(UserError, match=r"Q has the same option under A and C \('x'\)"):
        check_choices(["x", "y", "x"], "Q")


def test_doc_to_text_refuses_repeated_options():
    with pytest.raises(UserError, match="Which"):
        doc_to_text({"question": "Which?", "choices": ["x", "x"]})


@pytest.mark.parametrize("choices", [None, 4])
def test_document_without_options_is_refused(choices):
    with pytest.raises(UserError, match=rf"question '7' has no list of options \({choices}\)"):
        doc_to_text({"question": 7, "choices": choices})
