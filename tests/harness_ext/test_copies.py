import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_ext.copies import BYTES, SHINGLE, normalized, similarity, sketch

QUESTION = "Which of these is the right one, at 3.5 °C?"


@pytest.mark.parametrize(
    "copy",
    [
        "which OF these is the right one, at 3.5 °c?",
        "  Which of these\n is the right\tone, at 3.5 °C ?",
        "Which of these is the right one - at 3.5 °C.",
        "\u201cWhich of these\u201d is the right one at 3.5 °C",
        "Which of th\u200bese is\u2060 the right\ufeff one, at 3.5\u00ad °C?",
        "Ｗｈｉｃｈ of these is the right one, at ３.５ °C?",
        "Which\u00a0of these is the right one, at 3.5\u2009\u2103?",
        "Which of these is the right one\ufe0f, at 3.5 °C\u034f?",
    ],
)
def test_copies_in_another_dress_are_the_same_text(copy):
    assert normalized(copy) == normalized(QUESTION)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5", "35"),
        ("-5", "5"),
        ("2 - 3", "2 * 3"),
        ("2/3", "23"),
        ("a < b", "a > b"),
        ("?", "!"),
        ("कि", "का"),
        ("résumé", "resume"),
    ],
)
def test_other_texts_stay_apart(one, other):
    assert normalized(one) != normalized(other)


@given(st.text())
def test_a_normalized_text_has_neither_case_nor_blanks_and_is_never_lost(text):
    found = normalized(text)
    assert bool(found) == bool(text.strip())
    assert found == found.strip()
    assert normalized(text.swapcase() if text.isascii() else text) == found


def shingles(texts):
    text = "\n".join(texts).ljust(SHINGLE)
    return {text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)}


@given(st.lists(st.text("abcdef", min_size=20, max_size=60), min_size=2, max_size=2), st.integers(0, 40))
def test_sketches_estimate_the_share_of_common_shingles(texts, shared):
    one, other = texts[0], texts[0][:shared] + texts[1]
    a, b = shingles([one]), shingles([other])
    found = similarity(sketch([one]), sketch([other])[None])[0]
    # Five standard errors of BYTES draws.
    assert abs(found - len(a & b) / len(a | b)) < 5 * 0.5 / BYTES**0.5


@pytest.mark.parametrize("text", ["", "a", "\ud800"])
def test_texts_shorter_than_a_shingle_have_a_sketch_too(text):
    assert sketch([text]).shape == (BYTES,)
