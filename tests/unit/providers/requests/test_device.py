"""Replies in the device flow (RFC 8628)."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.connections.device_code import DeviceCode, DevicePoll
from evergrant_server.core.errors import ErrorCode, Failure
from providers.requests.device import DevicePending, read_device_authorization, read_device_token
from tests.unit.providers.samples import NOW, fails, reply_of, spec_like

SPEC = spec_like(auth_modes=["device_code"])
GOOD = {
    "device_code": "GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://example.com/device",
    "verification_uri_complete": "https://example.com/device?user_code=WDJB-MJHT",
    "expires_in": 1800,
    "interval": 5,
}  # RFC 8628 section 3.2


def code_of(body: Any, status: int = 200) -> DeviceCode:
    return read_device_authorization(SPEC, reply_of(body, status), NOW)


def test_rfc8628_3_2_example_response():
    code = code_of(GOOD)
    assert (code.user_code, code.verification_uri) == ("WDJB-MJHT", "https://example.com/device")
    assert (code.expires_at, code.interval_s) == (NOW + timedelta(minutes=30), 5)
    assert GOOD["device_code"] not in repr(code)
    assert DeviceCode.from_secret(code.as_secret()) == code


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"interval": None}, "interval_s", 5),  # section 3.2: "clients MUST use 5 as the default"
        ({"interval": "7"}, "interval_s", 7),
        ({"expires_in": "60"}, "expires_at", NOW + timedelta(minutes=1)),
        ({"verification_uri": None, "verification_url": "https://g"}, "verification_uri", "https://g"),
        ({"verification_uri_complete": None}, "verification_uri_complete", None),
        ({"verification_uri": "http://127.0.0.1:8000/d"}, "verification_uri", "http://127.0.0.1:8000/d"),
    ],
)
def test_variants_of_device_responses(changes: dict[str, Any], field: str, value: Any):
    body = {name: it for name, it in (GOOD | changes).items() if it is not None}
    assert getattr(code_of(body), field) == value


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": None},
        {"device_code": "a b"},
        {"user_code": ["WDJB"]},
        {"user_code": "x" * 65},
        {"user_code": "a\u202eb"},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "http://evil.example/device"},
        {"verification_uri": "https://user@evil.example/"},
        {"verification_uri": 'https://example.com/"><script>'},
        {"verification_uri": "https://["},
        {"verification_uri_complete": "data:text/html,x"},
        {"expires_in": 0},
        {"expires_in": 1e300},
        {"expires_in": True},
        {"interval": -5},
        {"interval": 1e9},
    ],
)
def test_unsafe_device_response_unreadable(changes: dict[str, Any]):
    with fails(ErrorCode.REPLY_UNREADABLE) as refused:
        code_of(GOOD | changes)
    assert GOOD["device_code"] not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"error": "invalid_client"}, 401, ErrorCode.CLIENT_REJECTED),
        (b"<html>", 404, ErrorCode.REPLY_UNREADABLE),
        (b"", 503, ErrorCode.PROVIDER_ERROR),
        ({}, 429, ErrorCode.PROVIDER_RATE_LIMITED),
    ],
)
def test_refused_device_authorization(body: Any, status: int, code: ErrorCode):
    with fails(code):
        code_of(body, status)


def poll(body: Any, status: int):
    return read_device_token(SPEC, reply_of(body, status), requested_scopes=("read",), now=NOW)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"error": "authorization_pending"}, 400, DevicePoll.PENDING),
        ({"error": "authorization_pending"}, 428, DevicePoll.PENDING),  # Google's status
        ({"error": "slow_down"}, 400, DevicePoll.SLOW_DOWN),
        (b"", 429, DevicePoll.SLOW_DOWN),
        (b"<html>", 503, DevicePoll.NO_ANSWER),
    ],
)
def test_rfc8628_3_5_pending(body: Any, status: int, said: DevicePoll):
    with pytest.raises(DevicePending) as again:
        poll(body, status)
    assert again.value.poll is said


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"error": "access_denied"}, 400, ErrorCode.CONSENT_DENIED),
        ({"error": "expired_token"}, 400, ErrorCode.CONSENT_EXPIRED),
        ({"error": "invalid_grant"}, 400, ErrorCode.GRANT_REJECTED),
        ({"error": "invalid_client"}, 401, ErrorCode.CLIENT_REJECTED),
        ({"error": "device_not_found"}, 404, ErrorCode.PROVIDER_ERROR),
        ({"access_token": 5}, 200, ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_rfc8628_3_5_final_errors(body: Any, status: int, code: ErrorCode):
    with pytest.raises(Failure) as ended:
        poll(body, status)
    assert not isinstance(ended.value, DevicePending)
    assert ended.value.code is code
