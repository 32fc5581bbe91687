"""Client metadata, and replies to a registration (RFC 7591)."""

from datetime import UTC, datetime
from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints
from providers.registration.client_metadata import auth_method_to_request, client_metadata, read_registration
from tests.unit.providers.samples import fails, reply_of

GOOD = {"client_id": "c-1", "client_secret": "s-1", "client_secret_expires_at": 0}


def test_rfc7591_2_client_metadata() -> None:
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
def test_preferred_auth_method_that_the_server_supports(offered: tuple[str, ...], asked: str) -> None:
    endpoints = Endpoints(authorization_endpoint="a", token_endpoint="t", token_auth_methods=offered)
    assert auth_method_to_request(endpoints) == asked


def test_rfc7591_3_2_1_registered_client() -> None:
    said = {
        **GOOD,
        "client_secret_expires_at": 1_800_000_000,
        "token_endpoint_auth_method": "client_secret_post",
        "registration_client_uri": "https://idp/register/c-1",
        "registration_access_token": "rat",
    }
    made = read_registration(reply_of(said, 201), asked_auth="client_secret_basic")
    assert (made.client_id, made.client_auth) == ("c-1", "client_secret_post")
    assert made.secret_expires_at == datetime.fromtimestamp(1_800_000_000, UTC)
    assert made.management_url == "https://idp/register/c-1"
    assert "rat" not in repr(made)
    assert "s-1" not in repr(made)


def test_secret_of_a_public_client_ignored() -> None:
    said = {**GOOD, "token_endpoint_auth_method": "none"}
    assert read_registration(reply_of(said, 201), asked_auth="none").client_secret is None


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        ({"error": "invalid_redirect_uri"}, 400, ErrorCode.CLIENT_REJECTED),
        (b"<html>no</html>", 403, ErrorCode.CLIENT_REJECTED),
        ({"error": "x"}, 302, ErrorCode.CLIENT_REJECTED),
        (GOOD, 500, ErrorCode.PROVIDER_ERROR),
        (GOOD, 429, ErrorCode.PROVIDER_RATE_LIMITED),
        (b"", 201, ErrorCode.REPLY_UNREADABLE),
        ({}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_id": 7}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_id": "x" * 5000}, 201, ErrorCode.REPLY_UNREADABLE),
        ({"client_id": "c-1"}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_secret_expires_at": 1e99}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_secret_expires_at": True}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "token_endpoint_auth_method": "tls_client_auth"}, 201, ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_refused_or_invalid_registration(data: Any, status: int, code: ErrorCode) -> None:
    with fails(code) as raised:
        read_registration(reply_of(data, status), asked_auth="client_secret_basic")
    assert "s-1" not in str(raised.value)
