"""Where a reply has its words, and which secrets of the exchange they may not quote."""

import base64
import json
from typing import Any

import httpx2
import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.provider_words import REDACTED, ProviderWords, ReplyFailure, words_in
from providers.oauth1.flow import read_token_credentials
from providers.registration.client_metadata import read_registration
from providers.responses.error_mapping import error_name, failure_of_reply
from providers.responses.raw_reply import RawReply
from tests.unit.providers.samples import NOW, fails, reply_of, spec_like

FORM = {"grant_type": "refresh_token", "refresh_token": "sesame", "scope": "read", "lang": "en"}
BASIC = "Basic " + base64.b64encode(b"client-1:open%20door").decode()


def reply_to(request: httpx2.Request, body: Any, status: int = 400) -> RawReply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RawReply.of(httpx2.Response(status, content=content, request=request))


def asked(**more: Any) -> httpx2.Request:
    parts: dict[str, Any] = {"data": FORM} | more
    return httpx2.Request("POST", "https://acme.example/token", **parts)


def words(body: Any, request: httpx2.Request | None = None, **fields: Any) -> ProviderWords:
    spec, reply = spec_like(**fields), reply_to(request or asked(), body)
    found = failure_of_reply(spec, reply, error_name(spec, reply)).said
    assert found is not None
    return found


NESTED = {"error_rules": [{"path": "data.error_code", "not_in": [0]}]}
LISTED = {"error_rules": [{"path": "errors", "code_path": "errors.0.errorType"}]}
BY_NUMBER = {"error_rules": [{"path": "errcode", "not_in": [0]}]}


@pytest.mark.parametrize(
    ("body", "fields", "error", "description"),
    [
        ({"error": "invalid_grant", "error_description": "Gone."}, {}, "invalid_grant", "Gone."),
        (b"error=invalid_grant&error_description=It+is+gone", {}, "invalid_grant", "It is gone"),
        ({"error": {"code": 190, "message": "Session expired"}}, {}, "190", "Session expired"),
        ({"error": "Bad refresh token"}, {}, "Bad refresh token", None),
        ({"message": "error", "data": {"error_code": 10010, "description": "gone"}}, NESTED, "10010", "gone"),
        ({"errors": [{"errorType": "invalid_grant", "message": "Gone"}]}, LISTED, "invalid_grant", "Gone"),
        ({"errcode": 42002, "errmsg": "refresh_token expired"}, BY_NUMBER, "42002", "refresh_token expired"),
        ({"title": "x", "detail": "No such token"}, {}, None, "No such token"),
        ({"error": ["x"], "message": ["y"]}, {}, None, '{"error": ["x"], "message": ["y"]}'),
    ],
)
def test_the_words_are_where_the_provider_puts_them(
    body: Any, fields: dict[str, Any], error: str | None, description: str | None
) -> None:
    found = words(body, **fields)
    assert (found.status, found.error, found.description) == (400, error, description)


@pytest.mark.parametrize(
    "request_",
    [
        asked(),
        asked(data=None, json={"inner": {"refresh_token": "sesame"}}),
        asked(data=None, params=FORM),
        asked(data=None, headers={"Authorization": "Bearer sesame"}),
        asked(data=None, headers={"X-Client-Secret": "sesame"}),
        asked(data=None, headers={"Authorization": 'OAuth oauth_token="sesame", oauth_nonce="1"'}),
        asked(data=None, headers={"Authorization": "Basic " + base64.b64encode(b"c:sesame").decode()}),
    ],
)
def test_what_was_sent_is_not_quoted(request_: httpx2.Request) -> None:
    found = words({"error": "sesame", "error_description": "sesame in en is read"}, request_)
    assert (found.error, found.description) == (REDACTED, f"{REDACTED} in en is read")


def test_a_secret_is_decoded_as_basic_authentication_encodes_it() -> None:
    found = words(
        {"error": "no", "error_description": "not open door"}, asked(headers={"Authorization": BASIC})
    )
    assert found.description == f"not {REDACTED}"


def test_what_came_with_it_is_not_quoted() -> None:
    body = {"error": "no", "error_description": "not simple", "data": {"access_token": "simple"}}
    assert words(body).description == f"not {REDACTED}"


def test_a_stored_reply_keeps_the_name_alone() -> None:
    """What was sent is not known any more."""
    body = {"error": "invalid_grant", "error_description": "not sesame"}
    found = failure_of_reply(spec_like(), reply_of(body, 400), "invalid_grant").said
    assert found == ProviderWords(status=400, error="invalid_grant")
    found = failure_of_reply(spec_like(), reply_of({"error": "not sesame"}, 400), "not sesame").said
    assert found == ProviderWords(status=400)


def test_no_message_has_the_description_nor_a_name_that_quotes() -> None:
    spec, reply = spec_like(), reply_to(asked(), {"error": "sesame", "error_description": "word"}, 400)
    failure = failure_of_reply(spec, reply, "sesame")
    assert "word" not in f"{failure}{failure.context}"
    assert "sesame" not in f"{failure}{failure.context}"
    assert words_in(failure)["provider_said"] == {"status": 400, "error": REDACTED, "description": "word"}


def test_a_refused_registration() -> None:
    request = httpx2.Request("POST", "https://acme.example/r", headers={"Authorization": "Bearer iat-one"})
    reply = reply_to(request, {"error": "invalid_redirect_uri", "error_description": "iat-one forbids it"})
    with fails(ErrorCode.CLIENT_REJECTED) as found:
        read_registration(reply, asked_auth="none")
    assert isinstance(found.value, ReplyFailure)
    assert found.value.said is not None
    assert found.value.said.description == f"{REDACTED} forbids it"


def test_a_refusal_in_oauth1() -> None:
    request = httpx2.Request("POST", "https://acme.example/t", headers={"Authorization": 'OAuth a="sesame"'})
    reply = reply_to(request, b"oauth_problem=token_rejected&oauth_problem_advice=not+sesame", 401)
    with fails(ErrorCode.GRANT_REJECTED) as found:
        read_token_credentials(spec_like(), reply, now=NOW)
    assert isinstance(found.value, ReplyFailure)
    assert str(found.value.said) == f"token_rejected: not {REDACTED}"
