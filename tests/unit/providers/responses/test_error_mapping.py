"""Error replies: their failures and retry times."""

from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode, FailureKind
from tests.unit.providers.responses.test_token_response import GOOD, failure, read
from tests.unit.providers.samples import NOW, spec_like


@pytest.mark.parametrize(
    ("status", "data", "code"),
    [
        (401, {"error": "invalid_grant"}, ErrorCode.GRANT_REJECTED),
        (400, {"error": "unauthorized_client"}, ErrorCode.CLIENT_REJECTED),
        (400, {"error": "unsupported_grant_type"}, ErrorCode.CLIENT_REJECTED),
        (429, {"error": "invalid_grant"}, ErrorCode.PROVIDER_RATE_LIMITED),
        (400, {"error": "slow_down"}, ErrorCode.PROVIDER_RATE_LIMITED),
        (500, {"error": "invalid_grant"}, ErrorCode.PROVIDER_ERROR),
        (502, b"<html>", ErrorCode.PROVIDER_ERROR),
        (400, {"error": "something_of_theirs"}, ErrorCode.PROVIDER_ERROR),
        (200, {"error": "something_of_theirs"}, ErrorCode.PROVIDER_ERROR),
        (400, {"error": "login_required"}, ErrorCode.GRANT_REJECTED),
        (400, {"error": ["invalid_grant"]}, ErrorCode.PROVIDER_ERROR),
        (400, {"error": {"code": "invalid_grant"}}, ErrorCode.GRANT_REJECTED),
        (400, {"error": {"message": "invalid_grant"}}, ErrorCode.PROVIDER_ERROR),
        (400, b"error=invalid_grant&error_description=gone", ErrorCode.GRANT_REJECTED),
        (400, [{"error": "invalid_grant"}], ErrorCode.PROVIDER_ERROR),
        (400, {"Error": "invalid_grant"}, ErrorCode.PROVIDER_ERROR),
        (400, {"error": " invalid_grant "}, ErrorCode.PROVIDER_ERROR),
        (200, GOOD | {"error": "invalid_grant"}, ErrorCode.GRANT_REJECTED),
        (200, b"<html>invalid_grant</html>", ErrorCode.REPLY_UNREADABLE),
        (204, b"", ErrorCode.REPLY_UNREADABLE),
        (408, b"", ErrorCode.PROVIDER_ERROR),
        (302, b"", ErrorCode.REPLY_UNREADABLE),
        (404, b"<html>", ErrorCode.REPLY_UNREADABLE),
        (201, GOOD, ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_error_mapping(status: int, data: Any, code: ErrorCode) -> None:
    assert failure(data, status).code is code


BASIC = 'Basic realm="clients"'


@pytest.mark.parametrize(
    ("challenge", "code"),
    [
        (BASIC, ErrorCode.CLIENT_REJECTED),
        ("basic", ErrorCode.CLIENT_REJECTED),
        ("Negotiate", ErrorCode.CLIENT_REJECTED),
        ("Basic YWJj==", ErrorCode.CLIENT_REJECTED),
        ('Bearer realm="a, b=\\"c", Basic realm="d"', ErrorCode.CLIENT_REJECTED),
        ('Basic realm="d", charset="UTF-8", Bearer', ErrorCode.CLIENT_REJECTED),
        ("Bearer", ErrorCode.PROVIDER_ERROR),
        ('BEARER realm="a, Basic b", error="invalid_token"', ErrorCode.PROVIDER_ERROR),
        ('Bearer realm = "a", charset  = "UTF-8"', ErrorCode.PROVIDER_ERROR),
        ('DPoP algs="ES256", error="invalid_token"', ErrorCode.PROVIDER_ERROR),
        ('OAuth "Facebook Platform" "invalid_token" "Basic reasons"', ErrorCode.PROVIDER_ERROR),
        ("Token", ErrorCode.PROVIDER_ERROR),
        ('realm="clients"', ErrorCode.PROVIDER_ERROR),
        (" , ", ErrorCode.PROVIDER_ERROR),
        ("", ErrorCode.PROVIDER_ERROR),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>no</html>", {}, {"message": "no"}, {"error": ["no"]}])
def test_rfc6749_5_2_401_with_client_challenge_is_client_rejected(
    challenge: str, code: ErrorCode, body: Any
) -> None:
    raised = failure(body, 401, www_authenticate=challenge)
    assert raised.code is code
    assert raised.context["provider_status"] == "401"
    assert raised.kind is not FailureKind.RECONNECT_NEEDED


@pytest.mark.parametrize(
    ("status", "data", "code"),
    [
        (401, {"error": "invented"}, ErrorCode.PROVIDER_ERROR),
        (401, {"error": "invalid_grant"}, ErrorCode.GRANT_REJECTED),
        (400, b"", ErrorCode.PROVIDER_ERROR),
        (407, b"", ErrorCode.PROVIDER_ERROR),
        (404, b"", ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_challenge_ignored_with_an_error_or_another_status(status: int, data: Any, code: ErrorCode) -> None:
    assert failure(data, status, www_authenticate=BASIC).code is code


NAMED = spec_like(
    error_rules=[
        {"path": "fault", "values": ["Bad", 7], "when": {"path": "text", "pattern": "^Old token.*$"}}
        | {"means": "dead_token"},
        {"path": "text", "pattern": "^(?:Unknown|No) app .*$", "means": "client"},
        {"path": "errors.0.code", "when": {"path": "busy", "values": [True]}, "means": "rate_limit"},
        {"path": "error", "values": ["invalid_grant"], "when": {"path": "hint", "not_in": ["dead"]}}
        | {"means": "passing"},
        {"path": "errors.0.code"},
    ],
    terminal_error_codes=["E1"],
    client_error_codes=["E2"],
    rate_limit_error_codes=["E3"],
    retryable_error_codes=["E4", "invalid_scope"],
)


@pytest.mark.parametrize(
    ("status", "data", "code"),
    [
        (400, {"fault": "Bad", "text": "Old token of Monday"}, ErrorCode.GRANT_REJECTED),
        (200, {"fault": 7, "text": "Old token"}, ErrorCode.GRANT_REJECTED),
        (400, {"fault": "Bad", "text": "An Old token"}, ErrorCode.PROVIDER_ERROR),
        (400, {"fault": "Good", "text": "Old token"}, ErrorCode.PROVIDER_ERROR),
        (400, {"fault": "Bad"}, ErrorCode.PROVIDER_ERROR),
        (400, {"text": "No app client-1"}, ErrorCode.CLIENT_REJECTED),
        (400, {"errors": [{"code": "E1"}], "busy": True}, ErrorCode.PROVIDER_RATE_LIMITED),
        (400, {"error": "invalid_grant", "hint": "busy"}, ErrorCode.PROVIDER_ERROR),
        (400, {"error": "invalid_grant", "hint": "dead"}, ErrorCode.GRANT_REJECTED),
        (400, {"error": "invalid_grant"}, ErrorCode.GRANT_REJECTED),
        (400, {"errors": [{"code": "E1"}]}, ErrorCode.GRANT_REJECTED),
        (500, {"errors": [{"code": "E1"}]}, ErrorCode.GRANT_REJECTED),
        (429, {"errors": [{"code": "E1"}]}, ErrorCode.PROVIDER_RATE_LIMITED),
        (200, {"errors": [{"code": "E2"}]}, ErrorCode.CLIENT_REJECTED),
        (503, {"error": "E3"}, ErrorCode.PROVIDER_RATE_LIMITED),
        (200, {"error": "E4"}, ErrorCode.PROVIDER_ERROR),
        (400, {"error": "invalid_scope"}, ErrorCode.PROVIDER_ERROR),
        (400, {"errors": [{"code": "E5"}]}, ErrorCode.PROVIDER_ERROR),
    ],
)
def test_a_definition_says_what_its_errors_mean(status: int, data: Any, code: ErrorCode) -> None:
    assert failure(data, status, NAMED).code is code


def test_a_name_has_one_meaning_and_a_condition_one_test() -> None:
    with pytest.raises(ValueError, match="retryable_error_codes has E1"):
        spec_like(client_error_codes=["E1"], retryable_error_codes=["E1"])
    with pytest.raises(ValueError, match="more than one of"):
        spec_like(error_rules=[{"path": "a", "when": {"path": "b", "values": [1], "pattern": "^a$"}}])
    with pytest.raises(ValueError, match="anchored"):
        spec_like(error_rules=[{"path": "a", "pattern": "dead"}])


def test_unknown_errors_never_end_a_grant() -> None:
    """Whatever a provider invents, a grant is kept unless the error is known to end it."""
    for status in (400, 401, 403, 409, 422, 500):
        for data in (b"", b"<html>", {"error": "invented"}, {"message": "no"}, {"error": {"code": 7}}):
            assert failure(data, status).kind is not FailureKind.RECONNECT_NEEDED


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("invalid_grant", True),
        ("x" * 65, False),
        ("<script>canary", False),
        ("Wörter", False),
        ("A B", False),
        ("bad\ud800", False),
    ],
)
def test_only_well_formed_error_names_are_quoted(error: str, shown: bool) -> None:
    raised = failure({"error": error, "error_description": "canary"}, 400)
    assert (raised.context.get("provider_error") == error) is shown
    assert (error in str(raised)) is shown
    assert "canary" not in f"{raised} {raised.context}"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "Fri, 01 May 2026 12:01:00 GMT", "date": "Fri, 01 May 2026 12:00:00 GMT"}, 60.0),
        ({"retry_after": "Fri, 01 May 2026 11:00:00 GMT", "date": "Fri, 01 May 2026 12:00:00 GMT"}, 0.0),
        ({"retry_after": "99999999999"}, 86400.0),
        ({"retry_after": "Fri, 01 May 2026 12:01:00 GMT"}, 60.0),  # by our clock, without one of theirs
        ({"retry_after": "Fri, 01 May 2099 12:01:00 GMT"}, 86400.0),
        ({"retry_after": "Friday, 01-May-26 12:01:00 GMT"}, 60.0),
        ({"retry_after": "2026-05-01T12:01:00Z"}, None),
        ({"retry_after": "7.5"}, None),
        ({"retry_after": "9" * 400}, None),
        ({"retry_after": " 7 "}, 7.0),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
def test_rfc9110_retry_after(headers: Any, seconds: float | None) -> None:
    assert failure(b"", 503, **headers).retry_after == seconds


@pytest.mark.parametrize(
    ("format", "value", "seconds"),
    [
        ("seconds", "1200", 1200.0),
        ("seconds", "7.5", 7.5),  # Reddit's
        ("seconds", "999999", 86400.0),
        ("seconds", "-1", None),
        ("seconds", "1e400", None),
        ("seconds", "soon", None),
        ("epoch_s", f"{NOW.timestamp() + 60:.0f}", 60.0),
        ("epoch_s", f"{NOW.timestamp() - 60:.0f}", 0.0),
        ("epoch_s", "99999999999", 86400.0),
    ],
)
def test_a_providers_own_header_says_when_its_limit_ends(
    format: str, value: str, seconds: float | None
) -> None:
    spec = spec_like(rate_limit_reset={"header": "X-Limit-Reset", "format": format})
    assert failure(b"", 429, spec=spec, x_limit_reset=value).retry_after == seconds
    assert failure(b"", 429, spec=spec, x_limit_reset=value, retry_after="3").retry_after == 3
    assert failure(b"", 503, spec=spec, x_limit_reset=value).retry_after is None  # it is on every reply
    assert failure(b"", 429, x_limit_reset=value).retry_after is None


def test_status_fields_and_error_objects() -> None:
    spec = spec_like(status_field="result", ok_values=["0000", 0], terminal_error_codes=["5001", "190"])
    assert read(GOOD | {"result": "0000"}, spec=spec).expires_in == 3600
    assert failure(GOOD | {"result": 5001}, spec=spec).code is ErrorCode.GRANT_REJECTED
    assert failure(GOOD, spec=spec).code is ErrorCode.PROVIDER_ERROR
    assert failure({"error": {"code": 190}, "result": 0}, 400, spec).code is ErrorCode.GRANT_REJECTED
    spec = spec_like(error_rules=[{"path": "ok", "not_in": [True]}])
    assert failure(GOOD | {"ok": 1}, spec=spec).code is ErrorCode.PROVIDER_ERROR
