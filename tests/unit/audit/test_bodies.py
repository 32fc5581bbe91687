"""Bodies: one text per value, so that what a leaf covers can't be spelled in two ways."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.audit.bodies import canonical_json, format_timestamp
from evergrant_server.core.secret import Secret

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, two: Any) -> bool:
    """Equal as JSON: True is not 1 and 1.0 is not 1."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)


@given(values)
def test_it_reads_back_and_is_spelled_the_same_again(value: Any):
    text = canonical_json(value)
    assert same(json.loads(text), value)
    assert canonical_json(json.loads(text)) == text
    assert text.isascii()


@given(values, values)
def test_different_values_have_different_texts(one: Any, two: Any):
    assert (canonical_json(one) == canonical_json(two)) == same(one, two)


@given(st.dictionaries(st.text(), st.integers(), max_size=6))
def test_the_order_of_names_does_not_matter(value: dict[str, int]):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"token": Secret("canary")}, TypeError),
        ({"token": [Secret("canary")]}, TypeError),
        ({1: "a"}, TypeError),
        ({"a": [{None: 1}]}, TypeError),
        (float("nan"), ValueError),
        ({"x": float("inf")}, ValueError),
        ({"at": datetime.now(UTC)}, TypeError),
    ],
)
def test_what_json_cannot_say_is_refused(value: Any, error: type[Exception]):
    with pytest.raises(error) as caught:
        canonical_json(value)
    assert "canary" not in str(caught.value)


def test_a_moment_is_the_same_text_in_every_zone():
    here = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert format_timestamp(here) == format_timestamp(here.astimezone(timezone(timedelta(hours=9))))
    assert format_timestamp(here) == "2026-03-01T12:00:00.000000+00:00"
