"""Pushed authorization requests and their replies (RFC 9126)."""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from evergrant_server.core.connections.consent import PushedAuthorization
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints
from providers.requests.par import (
    par_authorization_url,
    par_fields,
    par_request,
    read_par_reply,
    requires_par,
    uses_par,
)
from providers.requests.request_format import OAuthClient, ProviderAccess
from tests.unit.providers.samples import NOW, an_integration, fails, reply_of, spec_like

SPEC = spec_like()
PAGE = "https://idp.example/auth?tenant=a"
GOOD = {"request_uri": "urn:example:bwc4JK-ESC0w8acc191e-Y1LTC2", "expires_in": 90}  # section 2.2
CLIENT = OAuthClient("us", None, "none")


def endpoints(**changes: Any) -> Endpoints:
    return Endpoints(token_endpoint="https://idp.example/token", **changes)


@pytest.mark.parametrize("status", [200, 201])
def test_rfc9126_2_2_example_response(status: int):
    pushed = read_par_reply(SPEC, reply_of(GOOD, status), NOW)
    assert (pushed.request_uri, pushed.expires_at) == (GOOD["request_uri"], NOW + timedelta(seconds=90))
    assert pushed.is_answered
    assert GOOD["request_uri"] not in repr(pushed)
    assert PushedAuthorization.from_secret(pushed.as_secret()) == pushed


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"error": "invalid_client"}, 401, ErrorCode.CLIENT_REJECTED),
        ({"error": "invalid_grant"}, 400, ErrorCode.CLIENT_REJECTED),  # no grant is meant
        ({"error": "access_denied"}, 400, ErrorCode.PROVIDER_ERROR),
        ({}, 429, ErrorCode.PROVIDER_RATE_LIMITED),
        (b"<html>", 503, ErrorCode.PROVIDER_ERROR),
        (b"<html>", 201, ErrorCode.REPLY_UNREADABLE),
        ({"expires_in": 90}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "request_uri": 7}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "request_uri": "urn:a b"}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "request_uri": "x" * 3000}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "expires_in": 0}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "expires_in": True}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "expires_in": "90"}, 201, ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_rfc9126_2_3_error_and_invalid_responses(body: Any, status: int, code: ErrorCode):
    with fails(code) as failure:
        read_par_reply(SPEC, reply_of(body, status), NOW)
    told = PushedAuthorization.failed(failure.value)
    assert PushedAuthorization.from_secret(told.as_secret()).failure.code is code  # type: ignore[union-attr] it has one


def test_rfc9126_4_url_has_reference_and_client_id():
    url = par_authorization_url(SPEC, an_integration(client_id="us & them"), PAGE, "urn:a&b=c")
    assert urlsplit(url)[:3] == urlsplit(PAGE)[:3]
    carried = {"tenant": "a", "client_id": "us & them", "request_uri": "urn:a&b=c"}
    assert dict(parse_qsl(urlsplit(url).query)) == carried


def test_rfc9126_2_1_pushed_parameters():
    asked = par_fields(f"{PAGE}&state=s&resource=https%3A%2F%2Fa&resource=https%3A%2F%2Fb", PAGE)
    assert asked == (("state", "s"), ("resource", "https://a"), ("resource", "https://b"))
    known = endpoints(pushed_authorization_request_endpoint="https://idp.example/par")
    request = par_request(ProviderAccess(SPEC, known, CLIENT), asked)
    assert (request.url, request.fields) == ("https://idp.example/par", {"state": "s"})
    assert request.repeated_fields == asked[1:]
    assert "state" not in repr(PushedAuthorization(fields=asked))


def test_rfc9126_5_required_by_metadata_or_definition():
    duty = spec_like(require_pushed_authorization_requests=True)
    known = endpoints(pushed_authorization_request_endpoint="https://idp.example/par")
    assert not uses_par(SPEC, endpoints())
    assert uses_par(SPEC, known)
    assert not requires_par(SPEC, known)
    assert requires_par(duty, known)
    for spec, where in ((duty, endpoints()), (SPEC, endpoints(pushed_requests_required=True))):
        with fails(ErrorCode.CLIENT_REJECTED):
            uses_par(spec, where)


@pytest.mark.parametrize("lives_s", [1e308, 10**400])
def test_lifetime_of_a_reference_is_capped(lives_s: float) -> None:
    pushed = read_par_reply(SPEC, reply_of({**GOOD, "expires_in": lives_s}, 201), NOW)
    assert pushed.expires_at == NOW + timedelta(hours=1)
