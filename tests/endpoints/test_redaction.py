import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibtune.endpoints.redaction import Redaction

#: With all that JSON, URLs and HTML escape.
KEY = 'sk-"a\\b/c&d<e> f+g=0123456789'

ENCODINGS = {
    "as it is": KEY,
    "JSON": json.dumps(KEY),
    "JSON with escaped slashes": json.dumps(KEY).replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps(KEY)),
    "Python's repr": repr(KEY),
    "\\u escapes": "".join(f"\\u{ord(sign):04X}" for sign in KEY),
    "\\x escapes": "".join(f"\\x{ord(sign):02x}" for sign in KEY),
    "URL": quote(KEY, safe=""),
    "URL in lower case": quote(KEY, safe="").lower(),
    "URL twice": quote(quote(KEY, safe=""), safe=""),
    "form": quote_plus(KEY),
    "HTML": html.escape(KEY),
    "HTML twice": html.escape(html.escape(KEY)),
    "HTML numbers": "".join(f"&#{ord(sign)};" for sign in KEY),
    "hex": KEY.encode().hex(),
    "HEX": KEY.encode().hex().upper(),
}


@pytest.mark.parametrize("text", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_a_key_is_found_in_every_encoding(text):
    assert set(Redaction(KEY).text(text)) <= set("[key]\"'\\")


@pytest.mark.parametrize("before", ["", "x", "Bearer ", "user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_leaves_at_most_the_letters_at_the_ends(before, encode):
    text = encode((before + KEY).encode()).decode()
    shown = Redaction(KEY).text(text)
    rest = shown.split("[key]")
    assert len(rest) == 2
    assert len(shown.replace("[key]", "")) <= len(encode(before.encode())) + 4


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=8, max_size=60).map(str.strip))
def test_any_printable_key_is_found_in_json_in_json(key):
    if len(key) >= 8:
        assert Redaction(key).text(json.dumps(json.dumps({"said": key}))).count("[key]") >= 1


def test_values_are_redacted_wherever_texts_are():
    found = Redaction(KEY).value({"a": [KEY, 1, None, {KEY: KEY}], "b": 0.5})
    assert found == {"a": ["[key]", 1, None, {"[key]": "[key]"}], "b": 0.5}


def test_long_texts_of_backslashes_are_read_once():
    # Backtracking without a limit would take minutes.
    assert Redaction(KEY).text("\\" * 100_000) == "\\" * 100_000
