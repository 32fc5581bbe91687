"""What a server may answer in the device flow, and that nothing but a typed failure comes of the rest."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.core.connections.device_code import DeviceCode, DevicePoll
from evergrant_server.core.errors import ErrorCode, Failure
from providers.requests.device import DevicePending, read_device_authorization, read_device_token
from providers.responses.raw_reply import RawReply
from tests.unit.providers.definitions import spec_like

SPEC = spec_like(auth_modes=["device_code"])
NOW = datetime(2026, 5, 1, tzinfo=UTC)
GOOD = {
    "device_code": "GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://example.com/device",
    "verification_uri_complete": "https://example.com/device?user_code=WDJB-MJHT",
    "expires_in": 1800,
    "interval": 5,
}  # RFC 8628 section 3.2


def reply(body: Any, status: int = 200) -> RawReply:
    return RawReply(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def code_of(body: Any, status: int = 200) -> DeviceCode:
    return read_device_authorization(SPEC, reply(body, status), NOW)


def test_rfc8628_3_2_the_response_of_the_rfc():
    code = code_of(GOOD)
    assert (code.user_code, code.verification_uri) == ("WDJB-MJHT", "https://example.com/device")
    assert (code.expires_at, code.interval_s) == (NOW + timedelta(minutes=30), 5)
    assert GOOD["device_code"] not in repr(code)
    assert DeviceCode.from_secret(code.as_secret()) == code


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"interval": None}, None, None),
        ({"interval": "7"}, "interval_s", 7),
        ({"expires_in": "60"}, "expires_at", NOW + timedelta(minutes=1)),
        (
            {"verification_uri": None, "verification_url": "https://g.example/d"},
            "verification_uri",
            "https://g.example/d",
        ),
        ({"verification_uri_complete": None}, "verification_uri_complete", None),
        ({"verification_uri": "http://127.0.0.1:8000/d"}, "verification_uri", "http://127.0.0.1:8000/d"),
    ],
)
def test_what_servers_write_differently(changes: dict[str, Any], field: str | None, value: Any):
    body = {name: it for name, it in (GOOD | changes).items() if it is not None}
    code = code_of(body)
    if field is None:
        assert code.interval_s == 5  # RFC 8628 section 3.2: "If no value is provided, clients MUST use 5"
    else:
        assert getattr(code, field) == value


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": None},
        {"device_code": ""},
        {"device_code": 5},
        {"device_code": "a b"},
        {"user_code": ["WDJB"]},
        {"user_code": "x" * 65},
        {"user_code": "a\u202eb"},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "http://evil.example/device"},
        {"verification_uri": "https://user@evil.example/"},
        {"verification_uri": 'https://example.com/"><script>'},
        {"verification_uri": "//example.com"},
        {"verification_uri": "https://["},
        {"verification_uri_complete": "data:text/html,x"},
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": 1e300},
        {"expires_in": True},
        {"interval": -5},
        {"interval": 1e9},
        {"interval": {}},
    ],
)
def test_what_nobody_may_be_shown_is_unreadable(changes: dict[str, Any]):
    with pytest.raises(Failure) as refused:
        code_of(GOOD | changes)
    assert refused.value.code is ErrorCode.REPLY_UNREADABLE
    assert GOOD["device_code"] not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"error": "invalid_client"}, 401, ErrorCode.CLIENT_REJECTED),
        ({"error": "invalid_scope"}, 400, ErrorCode.CLIENT_REJECTED),
        ({"error": "unauthorized_client"}, 400, ErrorCode.CLIENT_REJECTED),
        (b"<html>", 404, ErrorCode.REPLY_UNREADABLE),
        (b"", 503, ErrorCode.PROVIDER_ERROR),
        ({}, 429, ErrorCode.PROVIDER_RATE_LIMITED),
    ],
)
def test_a_refusal_to_give_a_code_is_sorted(body: Any, status: int, code: ErrorCode):
    with pytest.raises(Failure) as refused:
        code_of(body, status)
    assert refused.value.code is code


def poll(body: Any, status: int):
    return read_device_token(SPEC, reply(body, status), requested_scopes=("read",), now=NOW)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"error": "authorization_pending"}, 400, DevicePoll.PENDING),
        ({"error": "authorization_pending"}, 428, DevicePoll.PENDING),  # Google's status
        ({"error": "slow_down"}, 400, DevicePoll.SLOW_DOWN),
        ({"error": "slow_down"}, 403, DevicePoll.SLOW_DOWN),
        (b"", 429, DevicePoll.SLOW_DOWN),
        (b"<html>", 503, DevicePoll.NO_ANSWER),
        (b"", 500, DevicePoll.NO_ANSWER),
    ],
)
def test_rfc8628_3_5_what_is_asked_again(body: Any, status: int, said: DevicePoll):
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
def test_rfc8628_3_5_what_ends_it(body: Any, status: int, code: ErrorCode):
    with pytest.raises(Failure) as ended:
        poll(body, status)
    assert not isinstance(ended.value, DevicePending)
    assert ended.value.code is code


def test_the_tokens_come_with_the_last_one():
    tokens = poll({"access_token": "at", "refresh_token": "rt", "expires_in": 60}, 200)
    assert (tokens.access_token.reveal(), tokens.expires_in) == ("at", 60)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.binary(max_size=300) | st.dictionaries(
    st.sampled_from([*GOOD, "error", "verification_url", "access_token"]), JSON, max_size=9
).map(lambda it: json.dumps(it).encode())


@given(body=BODIES, status=st.sampled_from([200, 201, 302, 400, 401, 404, 428, 429, 500, 503]))
def test_nothing_but_typed_failures_comes_out(body: bytes, status: int):
    for read in (lambda: code_of(body, status), lambda: poll(body, status)):
        try:
            read()
        except Failure:
            continue
