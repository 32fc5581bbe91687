"""A secret is found in every wrapping it is likely to travel in."""

import base64
import json
from urllib.parse import quote, urlencode

import pytest
from evergrant.temporal.spills import contains_secret
from hypothesis import given
from hypothesis import strategies as st

SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=16, max_size=80)
WRAPPINGS = {
    "raw": str.encode,
    "json": lambda it: json.dumps({"a": [it]}).encode(),
    "url": lambda it: quote(it, safe="").encode(),
    "form": lambda it: urlencode({"access_token": it}).encode(),
    "hex": lambda it: it.encode().hex().encode(),
    "base64": lambda it: base64.b64encode(it.encode()),
    "base64url": lambda it: base64.urlsafe_b64encode(it.encode()),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@given(secret=SECRETS)
def test_found(wrapping: str, secret: str):
    data = b"before " + WRAPPINGS[wrapping](secret) + b" after"
    assert contains_secret(data, ["something else entirely", secret])


@given(secret=SECRETS, before=st.binary(max_size=5), after=st.binary(max_size=5))
def test_found_inside_a_larger_base64(secret: str, before: bytes, after: bytes):
    assert contains_secret(base64.b64encode(before + secret.encode() + after), [secret])


@given(secret=SECRETS)
def test_not_found_where_it_is_not(secret: str):
    assert not contains_secret(json.dumps({"count": 3, "ids": ["a", "b"]}).encode(), [secret])


def test_an_empty_secret_is_in_nothing():
    assert not contains_secret(b"anything", [""])
