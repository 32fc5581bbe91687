"""Token replies, further slots' too, and those of revocation and introspection."""

import json
from typing import Any

import pytest

from evergrant_server.core.connections.grant import ImportedTokens, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import token_slot_scope_params
from providers.responses.error_mapping import (
    UnreadableTokens,
    is_token_refused,
    read_introspection,
    read_revocation,
)
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets, read_tokens
from tests.unit.providers.samples import NOW, fails, reply_of, spec_like

PLAIN = spec_like()
GOOD: dict[str, Any] = {"access_token": "at", "token_type": "Bearer", "expires_in": 3600}


def read(data: Any, status: int = 200, spec: ProviderSpec = PLAIN, **headers: str) -> TokenSet:
    reply = reply_of(data, status, **headers)
    return read_tokens(spec, reply, requested_scopes=("read", "write"), refreshing=True, now=NOW)


def failure(data: Any, status: int = 200, spec: ProviderSpec = PLAIN, **headers: str) -> Failure:
    with pytest.raises(Failure) as raised:
        read(data, status, spec, **headers)
    return raised.value


@pytest.mark.parametrize(
    ("said", "made"),
    [
        (b'{"access_token": "at", "token_type": "of another kind"}', True),
        (b'{"data": {"accessToken" : "at"}}', True),
        (b'{"token": {"value": "at"}}', True),
        (b"access_token=at&token_type=other", True),
        (b"a=b&refresh_token=rt", True),
        (b'{"access_token": "at", "access_token": "twice"}', True),
        (b'{"access_token": ""}', False),
        (b'{"message": "Invalid token: try later"}', False),
        (b'<html><script>var token = "abc"; x={"token": "a"}', False),
        (b'\xef\xbb\xbf <html>{"token": "abc"}', False),
        (b"", False),
        (b'{"ok": true}', False),
    ],
)
def test_unreadable_reply_with_tokens_is_unreadable_tokens(said: bytes, made: bool) -> None:
    """The credential is spent, so the request may not be repeated."""
    raised = failure(said)
    assert raised.code is ErrorCode.REPLY_UNREADABLE
    assert isinstance(raised, UnreadableTokens) is made
    for status in (201, 302, 404):
        raised = failure(said, status)
        assert isinstance(raised, UnreadableTokens) is (made and status == 201)


def test_rfc6749_5_1_full_reply() -> None:
    tokens = read(GOOD | {"refresh_token": "rt", "id_token": "id", "scope": "read  write read", "extra": 1})
    assert tokens.access_token.reveal() == "at"
    assert tokens.refresh_token is not None
    assert tokens.refresh_token.reveal() == "rt"
    assert tokens.id_token is not None
    assert (tokens.scopes, tokens.expires_in, tokens.metadata) == (("read", "write"), 3600.0, {})


@pytest.mark.parametrize("error", [{}, [], "", None])
def test_an_empty_error_drops_no_tokens(error: Any) -> None:
    tokens = read(GOOD | {"refresh_token": "rotated", "error": error})
    assert tokens.refresh_token is not None


@pytest.mark.parametrize("absent", [{}, {"refresh_token": None}, {"refresh_token": ""}])
def test_rfc6749_6_reply_without_refresh_token(absent: dict[str, Any]) -> None:
    assert read(GOOD | absent).refresh_token is None


@pytest.mark.parametrize("token_type", ["bearer", "BEARER", "Bearer", "", None])
def test_rfc6749_5_1_token_type_ignores_case(token_type: str | None) -> None:
    assert read(GOOD | {"token_type": token_type}).token_type == "Bearer"


@pytest.mark.parametrize("token_type", ["mac", "DPoP", "N_A", 7, ["bearer"], {"a": 1}])
def test_rfc6749_7_1_unknown_token_type_refused(token_type: Any) -> None:
    assert failure(GOOD | {"token_type": token_type}).code is ErrorCode.REPLY_UNREADABLE


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3600", 3600.0), (3600, 3600.0), (3600.0, 3600.0), (None, None), (59.75, 59.75), ("59.75", 59.75)],
)
def test_rfc6749_a_14_expires_in_is_a_number(value: Any, seconds: float | None) -> None:
    assert read(GOOD | {"expires_in": value}).expires_in == seconds


@pytest.mark.parametrize("zero", [0, "0", 0.0, "0.0"])
def test_a_lifetime_of_zero_states_none(zero: Any) -> None:
    """A token of a second has none left after OpenAuth's rounding; elsewhere zero means for ever."""
    assert read(GOOD | {"expires_in": zero}).expires_in is None
    assumed = spec_like(assumed_lifetime_s=50)
    assert read(GOOD | {"expires_in": zero}, spec=assumed).expires_in == 50
    forever = spec_like(assumed_lifetime_s=50, response={"zero_means_no_expiry": True})
    assert read(GOOD | {"expires_in": zero}, spec=forever).expires_in is None


@pytest.mark.parametrize(
    "literal", ["-1", "1e99", "NaN", "true", '"abc"', '"1e3"', '"1."', '""', "[]", "9" * 5000]
)
def test_invalid_expires_in_unreadable(literal: str) -> None:
    body = f'{{"access_token": "canary", "token_type": "bearer", "expires_in": {literal}}}'.encode()
    raised = failure(body)
    assert raised.code is ErrorCode.REPLY_UNREADABLE
    assert "canary" not in str(raised)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"\xff\xfe{}",
        b"<html><body>canary</body></html>",
        b"Service temporarily canary",
        b'{"access_token": "at", "access_token": "canary", "token_type": "bearer"}',
        b'{"access_token": "at", "token_type": "bearer", "more": {"canary": 1, "canary": 2}}',
        b"access_token=at&access_token=canary&token_type=bearer",
        b'{"access_token": "at"',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"access_token": "at", "x": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"token_type": "bearer"}',
        b'{"access_token": 7}',
        b'{"access_token": {"canary": 1}}',
        b'{"access_token": "with\\r\\nX-Header: canary"}',
        b'{"access_token": "at", "refresh_token": 7}',
    ],
)
def test_invalid_body_unreadable_and_not_quoted(body: bytes) -> None:
    raised = failure(body)
    assert raised.code is ErrorCode.REPLY_UNREADABLE
    assert "canary" not in f"{raised} {raised.context}"


def test_byte_order_mark_and_form() -> None:
    assert read(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()).expires_in == 3600
    tokens = read(b"access_token=at&token_type=bearer&expires_in=60&scope=read+write")
    assert (tokens.expires_in, tokens.scopes) == (60.0, ("read", "write"))


@pytest.mark.parametrize(
    ("how", "value", "date", "seconds"),
    [
        ("iso8601", "2026-05-01T13:00:00Z", None, 3600.0),
        ("iso8601", "2026-05-01T13:00:00", None, 3600.0),
        ("iso8601", "2026-05-01T13:00:00Z", "Fri, 01 May 2026 12:30:00 GMT", 1800.0),
        ("epoch_s", NOW.timestamp() + 60, None, 60.0),
        ("epoch_s", str(NOW.timestamp() + 60), None, 60.0),
        ("epoch_ms", (NOW.timestamp() + 60) * 1000, None, 60.0),
    ],
)
def test_absolute_expiry(how: str, value: Any, date: str | None, seconds: float) -> None:
    spec = spec_like(response={"expires_at_path": "until", "expires_at_format": how})
    headers: Any = {"date": date} if date else {}
    assert read({"access_token": "at", "until": value}, spec=spec, **headers).expires_in == seconds


@pytest.mark.parametrize("value", ["2026-05-01T11:00:00Z", "yesterday", True, [], 1e300, "9" * 400])
@pytest.mark.parametrize("how", ["iso8601", "epoch_s"])
def test_invalid_absolute_expiry_unreadable(how: str, value: Any) -> None:
    spec = spec_like(response={"expires_at_path": "until", "expires_at_format": how})
    assert failure({"access_token": "at", "until": value}, spec=spec).code is ErrorCode.REPLY_UNREADABLE


def test_lifetimes_in_milliseconds_and_of_refresh_tokens() -> None:
    spec = spec_like(response={"expires_in_path": "data.0.ttl", "expires_in_unit": "ms"})
    assert read(GOOD | {"data": [{"ttl": 90_000}]}, spec=spec).expires_in == 90
    spec = spec_like(refresh_token_lifetime_s=50)
    assert read(GOOD | {"refresh_token": "rt"}, spec=spec).refresh_expires_in == 50
    assert read(GOOD, spec=spec).refresh_expires_in is None


def test_offline_scope_kept_when_not_listed() -> None:
    spec = spec_like(offline_scope="offline_access")
    reply = reply_of(GOOD | {"refresh_token": "rt", "scope": "read"})
    tokens = read_tokens(spec, reply, requested_scopes=("read", "offline_access"), refreshing=False)
    assert tokens.scopes == ("read", "offline_access")


@pytest.mark.parametrize("data", [b"", b"<html>", {"error": "ignored"}, GOOD])
def test_rfc7009_2_2_200_confirms_whatever_the_body(data: Any) -> None:
    read_revocation(PLAIN, reply_of(data))


@pytest.mark.parametrize(
    ("status", "data", "code"),
    [
        (503, b"", ErrorCode.PROVIDER_ERROR),
        (429, b"", ErrorCode.PROVIDER_RATE_LIMITED),
        (401, {"error": "invalid_client"}, ErrorCode.CLIENT_REJECTED),
        (400, {"error": "unsupported_token_type"}, ErrorCode.CLIENT_REJECTED),
        (404, b"", ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_rfc7009_2_2_unconfirmed_revocation(status: int, data: Any, code: ErrorCode) -> None:
    with fails(code):
        read_revocation(PLAIN, reply_of(data, status))


@pytest.mark.parametrize(
    ("challenge", "code"),
    [("Basic", ErrorCode.CLIENT_REJECTED), ('Bearer realm="acme"', ErrorCode.PROVIDER_ERROR)],
)
def test_401_by_challenge(challenge: str, code: ErrorCode) -> None:
    """Some are asked to revoke, or to say what a token is, with an access token in the header."""
    reply = reply_of(b"", 401, www_authenticate=challenge)
    for judge in (read_revocation, read_introspection):
        with fails(code):
            judge(PLAIN, reply)


def test_declared_revocation() -> None:
    spec = spec_like(
        error_rules=[{"path": "ok", "not_in": [True], "code_path": "error"}],
        revocation={"gone_error_codes": ["token_revoked"]},
    )
    read_revocation(spec, reply_of({"ok": True}))
    read_revocation(spec, reply_of({"ok": False, "error": "token_revoked"}))
    with pytest.raises(Failure):
        read_revocation(spec, reply_of({"ok": False, "error": "internal"}))


SAYS_WHEN = spec_like(
    error_rules=[
        {"path": "hint", "values": ["busy"], "code_path": "error", "means": "passing"},
        {"path": "hint", "values": ["app"], "code_path": "error", "means": "client"},
        {"path": "hint", "values": ["dead"], "code_path": "error", "means": "dead_token"},
    ],
    client_error_codes=["E2"],
    retryable_error_codes=["E4"],
    revocation={"gone_error_codes": ["invalid_token"]},
)


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        ({"error": "invalid_grant"}, True),
        ({"error": "unknown"}, True),
        (b"", True),
        ({"error": "invalid_grant", "hint": "dead"}, True),
        ({"error": "invalid_grant", "hint": "busy"}, False),
        ({"error": "invalid_token", "hint": "busy"}, False),
        ({"error": "invalid_token", "hint": "app"}, False),
        ({"hint": "busy"}, False),
        ({"error": "E4"}, False),
        ({"error": "E2"}, False),
        ({"error": "temporarily_unavailable"}, False),
        ({"error": "server_error"}, False),
    ],
)
def test_rfc7009_2_2_an_error_that_passes_says_nothing_about_the_token(data: Any, refused: bool) -> None:
    """A token is dead when its provider refuses it, not when a rule says that the error is another's."""
    with pytest.raises(Failure) as raised:
        read_revocation(SAYS_WHEN, reply_of(data, 400))
    assert is_token_refused(raised.value) is refused


@pytest.mark.parametrize("active", ["true", 1, None, [True]])
def test_rfc7662_2_2_active_must_be_a_boolean(active: Any) -> None:
    assert read_introspection(PLAIN, reply_of({"active": True})) is True
    assert read_introspection(PLAIN, reply_of({"active": False})) is False
    with pytest.raises(Failure):
        read_introspection(PLAIN, reply_of({"active": active}))


@pytest.mark.parametrize("said", [b"1e999", b'"\\ud800"', b'"a\\u0000b"', b'"' + b"x" * 1025 + b'"'])
def test_unstorable_metadata_left_out(said: bytes):
    spec = spec_like(response={"metadata_paths": ["team"]})
    assert read(b'{"access_token": "a", "team": ' + said + b"}", spec=spec).metadata == {}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["17", 18], True),
        ([], True),  # no account was granted
        (["17"] * 500, True),
        (["17"] * 501, False),
        ([["17"]], False),
        ([None], False),
        ([{"id": 17}], False),
    ],
)
def test_a_short_list_is_metadata(said: list[Any], kept: bool):
    spec = spec_like(response={"metadata_paths": ["advertisers"]})
    read_as = read({"access_token": "a", "advertisers": said}, spec=spec).metadata
    assert read_as == ({"advertisers": said} if kept else {})


def test_metadata_in_any_script_kept():
    said = "Équipe\u00a0\U0001f469\u200d\U0001f4bb\nof two lines"
    spec = spec_like(response={"metadata_paths": ["team"]})
    assert read({"access_token": "a", "team": said}, spec=spec).metadata == {"team": said}


def test_a_reply_in_two_shapes():
    spec = spec_like(response={"unwrap_path": "data.0"})
    for said in ({"access_token": "a"}, {"data": [{"access_token": "a"}]}, {"access_token": "a", "data": []}):
        assert read(said, spec=spec).access_token.reveal() == "a"


@pytest.mark.parametrize("name", ["access_token", "refresh_token", "id_token", "token_type"])
def test_lone_surrogate_in_a_token_unreadable(name: str):
    raised = failure({"access_token": "a", "refresh_token": "r", name: "t\ud800"})
    assert raised.code is ErrorCode.REPLY_UNREADABLE
    raised.detail.encode()


# --- tokens of further slots are read completely or not at all ------------------------------------

ONE = spec_like(response={"additional_tokens": {"path": "authed_user", "name": "user"}})
MANY = spec_like(response={"additional_tokens": {"path": "other_tokens", "key": "resource_server"}})
TOKEN = {"access_token": "at-9", "token_type": "bearer", "expires_in": 60, "refresh_token": "rt-9"}


def replied(**data: Any) -> RawReply:
    return reply_of({"access_token": "at-1", "token_type": "bearer", **data})


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
