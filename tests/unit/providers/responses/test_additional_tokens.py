"""Tokens of further slots are read completely or not at all."""

from typing import Any

import pytest

from evergrant_server.core.connections.grant import ImportedTokens, TokenSet
from evergrant_server.core.errors import ErrorCode
from providers.requests.authorization_url import token_slot_scope_params
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets
from tests.unit.providers.samples import NOW, fails, reply_of, spec_like

ONE = spec_like(response={"additional_tokens": {"path": "authed_user", "name": "user"}})
MANY = spec_like(response={"additional_tokens": {"path": "other_tokens", "key": "resource_server"}})
TOKEN = {"access_token": "at-9", "token_type": "bearer", "expires_in": 60, "refresh_token": "rt-9"}


def replied(**data: Any) -> RawReply:
    return reply_of({"access_token": "at-1", "token_type": "bearer", **data})


@pytest.mark.parametrize(
    ("spec", "data", "names"),
    [
        (ONE, {"authed_user": {"id": "U1"}}, []),
        (MANY, {"other_tokens": []}, []),
        (
            MANY,
            {"other_tokens": [{**TOKEN, "resource_server": "a"}, {**TOKEN, "resource_server": "b"}]},
            "ab",
        ),
    ],
)
def test_token_slots_by_name(spec: Any, data: dict[str, Any], names: Any):
    read = additional_token_sets(spec, replied(**data), now=NOW)
    assert list(read) == list(names)
    for tokens in read.values():
        assert tokens.refresh_token is not None
        assert (tokens.refresh_token.reveal(), tokens.expires_in) == ("rt-9", 60)


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (ONE, {"authed_user": "x"}),
        (ONE, {"authed_user": {**TOKEN, "token_type": "mac"}}),
        (MANY, {"other_tokens": TOKEN}),
        (MANY, {"other_tokens": ["x"]}),
        (MANY, {"other_tokens": [TOKEN]}),
        (MANY, {"other_tokens": [{**TOKEN, "resource_server": "with space"}]}),
        (MANY, {"other_tokens": [{**TOKEN, "resource_server": "a"}] * 2}),
        (MANY, {"other_tokens": [{"access_token": "", "resource_server": "a"}]}),
        (MANY, {"other_tokens": [{**TOKEN, "resource_server": str(n)} for n in range(51)]}),
    ],
)
def test_invalid_additional_tokens_unreadable(spec: Any, data: dict[str, Any]):
    with fails(ErrorCode.REPLY_UNREADABLE) as raised:
        additional_token_sets(spec, replied(**data), now=NOW)
    assert "at-9" not in str(raised.value)


def test_token_set_round_trip():
    read = additional_token_sets(ONE, replied(authed_user=TOKEN), now=NOW)
    tokens = read["user"].model_copy(update={"further": read})
    assert TokenSet.from_secret(tokens.as_secret()) == tokens
    waiting = ImportedTokens.from_secret(ImportedTokens.from_token_set(read["user"], NOW).as_secret())
    assert waiting.token_set(NOW) == read["user"]


def test_scopes_of_a_token_slot():
    response = {"additional_tokens": {"path": "authed_user", "name": "user"}}
    spec = spec_like(scope_params={"user": "user_scope"}, response=response)
    assert token_slot_scope_params(spec, {"user": ("a", "b")}) == {"user_scope": ("a", "b")}
    for wrong in ({"team": ("a",)}, {"user": ("a b",)}):
        with fails(ErrorCode.INVALID_REQUEST, field="slot_scopes"):
            token_slot_scope_params(spec, wrong)
    with pytest.raises(ValueError, match="scope_params"):
        spec_like(scope_params={"team": "team_scope"}, response=response)
    with pytest.raises(ValueError, match="one of key and name"):
        spec_like(response={"additional_tokens": {"path": "x"}})
