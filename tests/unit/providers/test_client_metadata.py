"""What we say of ourselves, and what a registration's answer means (RFC 7591)."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.core.access import Endpoints
from evergrant_server.core.errors import ErrorCode, Failure
from providers.registration.client_metadata import auth_method_to_request, client_metadata, read_registration
from providers.responses.raw_reply import RawReply

GOOD = {"client_id": "c-1", "client_secret": "s-1", "client_secret_expires_at": 0}


def reply(data: Any, status: int = 201) -> RawReply:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return RawReply(status, {"content-type": "application/json"}, body)


def test_rfc7591_2_our_metadata_asks_for_what_we_do_and_nothing_else() -> None:
    assert client_metadata("https://e/cb", auth="none", scopes=("read", "write")) == {
        "client_name": "Evergrant",
        "redirect_uris": ["https://e/cb"],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "scope": "read write",
    }
    assert client_metadata("https://e/cb", auth="none", client_id="https://e/c")["client_id"] == "https://e/c"


@pytest.mark.parametrize(
    ("offered", "asked"),
    [
        ((), "client_secret_basic"),
        (("client_secret_post", "client_secret_basic"), "client_secret_basic"),
        (("client_secret_post",), "client_secret_post"),
        (("none", "private_key_jwt"), "none"),
    ],
)
def test_the_first_way_of_ours_that_the_server_takes(offered: tuple[str, ...], asked: str) -> None:
    endpoints = Endpoints(authorization_endpoint="a", token_endpoint="t", token_auth_methods=offered)
    assert auth_method_to_request(endpoints) == asked


def test_rfc7591_3_2_1_what_the_server_made_of_us() -> None:
    said = {
        **GOOD,
        "client_secret_expires_at": 1_800_000_000,
        "token_endpoint_auth_method": "client_secret_post",
        "registration_client_uri": "https://idp/register/c-1",
        "registration_access_token": "rat",
    }
    made = read_registration(reply(said), asked_auth="client_secret_basic")
    assert (made.client_id, made.client_auth) == ("c-1", "client_secret_post")
    assert made.secret_expires_at == datetime.fromtimestamp(1_800_000_000, UTC)
    assert made.management_url == "https://idp/register/c-1"
    assert "rat" not in repr(made)
    assert "s-1" not in repr(made)


def test_a_public_client_keeps_no_secret_that_it_was_given() -> None:
    said = {**GOOD, "token_endpoint_auth_method": "none"}
    assert read_registration(reply(said), asked_auth="none").client_secret is None


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        ({"error": "invalid_redirect_uri"}, 400, ErrorCode.CLIENT_REJECTED),
        (b"<html>no</html>", 403, ErrorCode.CLIENT_REJECTED),
        ({"error": "x"}, 302, ErrorCode.CLIENT_REJECTED),
        (GOOD, 500, ErrorCode.PROVIDER_ERROR),
        (GOOD, 429, ErrorCode.PROVIDER_RATE_LIMITED),
        (b"", 201, ErrorCode.REPLY_UNREADABLE),
        (b"[]", 201, ErrorCode.REPLY_UNREADABLE),
        ({}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_id": 7}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_id": "x" * 5000}, 201, ErrorCode.REPLY_UNREADABLE),
        ({"client_id": "c-1"}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_secret_expires_at": -1}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_secret_expires_at": 1e99}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_secret_expires_at": True}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "token_endpoint_auth_method": "tls_client_auth"}, 201, ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_bad_answers_end_in_a_typed_failure(data: Any, status: int, code: ErrorCode) -> None:
    with pytest.raises(Failure) as raised:
        read_registration(reply(data, status), asked_auth="client_secret_basic")
    assert raised.value.code is code
    assert "s-1" not in str(raised.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
)
_NAMES = st.sampled_from([*GOOD, "token_endpoint_auth_method", "registration_access_token", "error"])


@given(st.dictionaries(_NAMES, _JSON) | _JSON, st.sampled_from([200, 201, 204, 302, 400, 401, 429, 500]))
def test_nothing_but_our_own_failures_comes_out(data: Any, status: int) -> None:
    try:
        made = read_registration(reply(data, status), asked_auth="client_secret_basic")
    except Failure:
        return
    assert made.client_id
