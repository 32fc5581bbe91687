"""The scopes of a token reply, in whichever form they come."""

from typing import Any

import pytest

from evergrant_server.core.connections.grant import UNKNOWN_SCOPE
from tests.unit.providers.responses.test_token_response import read
from tests.unit.providers.samples import spec_like


@pytest.mark.parametrize("said", ["", " ", [], [""]])
def test_rfc6749_5_1_an_empty_scope_is_not_known(said: Any):
    """The grammar has no empty scope. Read as none it would slip past every deny."""
    assert read({"access_token": "a", "scope": said}).scopes == (UNKNOWN_SCOPE,)
    without = spec_like(scopes_supported=False)
    assert read({"access_token": "a", "scope": said}, spec=without).scopes == ()


@pytest.mark.parametrize("scope_type", [str, list])
@pytest.mark.parametrize("half", ["\ud800", "files\udfff", "a\0b"])
def test_unstorable_scope_left_out(scope_type: type, half: str):
    """The API's response and the next request with scopes would fail."""
    said = ["read", half] if scope_type is list else f"read {half}"
    assert read({"access_token": "a", "scope": said}).scopes == ("read",)


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ("a,b c", ("a", "b", "c")),
        (["a", "b", 7, None, {"c": 1}, True], ("a", "b", "7")),
        (40001, ("40001",)),
        ({"a": True}, None),
        (True, None),
        (10**30, None),
    ],
)
def test_no_token_is_lost_over_its_scopes(said: Any, scopes: tuple[str, ...] | None):
    spec = spec_like(scope_separator=",")
    assert read({"access_token": "a", "scope": said}, spec=spec).scopes == scopes
