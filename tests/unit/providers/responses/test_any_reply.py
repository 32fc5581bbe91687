"""Whatever a provider replies, every reader returns a valid result or raises a Failure."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergrant_server.core.errors import Failure
from providers.definition.registry import Registry
from providers.oauth1.flow import read_temporary_credentials, read_token_credentials
from providers.quirks import reshaped_first_reply
from providers.registration.client_metadata import read_registration
from providers.requests.accounts import read_lookup
from providers.requests.client_grants import read_exchanged_token
from providers.requests.device import read_device_authorization, read_device_token
from providers.requests.par import read_par_reply
from providers.responses.error_mapping import (
    error_name,
    failure_of_reply,
    read_introspection,
    read_revocation,
)
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens
from tests.unit.providers.samples import NOW, spec_like

PLAIN = spec_like()
TOKEN_SPECS = [
    PLAIN,
    spec_like(error_rules=[{"path": "ok", "not_in": [True], "code_path": "error"}]),
    spec_like(response={"expires_at_path": "expires_in", "expires_at_format": "epoch_ms"}),
    spec_like(response={"unwrap_path": "scope.0", "metadata_paths": ["error", "ok.1"]}),
]
RULES = [  # every kind of condition
    {"path": "error.0", "pattern": "^.*a.*$", "at": ["refresh"], "means": "dead_token"},
    {
        "path": "error",
        "not_in": [0],
        "when": [{"header": "retry-after"}, {"body": "text"}],
        "code_path": "ok.1",
    },
    {"body": "html", "pattern": "^.*x.*$", "means": "rate_limit"},
    {"body": "text", "values": ["0"], "means": "subject"},
    {"body": "empty", "status": [400], "means": "client"},
    {"header": "date", "values": [""], "means": "passing"},
]
TOKEN_SPECS += [
    spec_like(error_rules=RULES, wait_in_body={"path": "id", "unit": "ms"}),
    spec_like(
        error_rules=RULES[::-1], wait_in_body={"pattern": "^.*?([0-9]+)"}, status_field="ok", ok_values=[1]
    ),
    *(Registry.load().get(name) for name in ("slack", "microsoft", "withings", "cilogon", "ringcentral")),
]
CHOICE = spec_like(post_auth=[{"url": "https://acme.example/", "choose": "[]", "metadata": {"id": "id"}}])
NAMES = (
    *("access_token", "token_type", "expires_in", "refresh_token", "scope", "error", "ok", "active"),
    *("device_code", "user_code", "verification_uri", "verification_url", "interval", "request_uri"),
    *("client_id", "client_secret", "client_secret_expires_at", "token_endpoint_auth_method"),
    *("authed_user", "errors", "status", "error_codes", "errorCode"),
    *("issued_token_type", "oauth_token", "oauth_token_secret", "oauth_callback_confirmed", "id"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=9)
BODIES = st.binary(max_size=200) | (OBJECTS | st.lists(OBJECTS, max_size=3)).map(
    lambda data: json.dumps(data).encode()
)


def tokens(reply: RawReply) -> None:
    for spec in TOKEN_SPECS:
        with suppress(Failure):
            read_tokens(spec, reply, requested_scopes=("a",), refreshing=False, now=NOW)
        for at in ("refresh", "exchange", "device", "revocation", None):
            sent = replace(
                reply, request=httpx2.Request("POST", "https://acme.example/token", data={"code": "x"})
            )
            failure = failure_of_reply(spec, sent, error_name(spec, sent, at), NOW, at)
            assert failure.retry_after is None or 0 <= failure.retry_after <= 86_400
            assert failure.said is not None


def reshaped(reply: RawReply) -> None:
    for quirk in ("token_under_authed_user", "mastodon_apps"):
        assert isinstance(reshaped_first_reply([quirk], reply.body), bytes)


def pushed(reply: RawReply) -> None:
    read = read_par_reply(PLAIN, reply, NOW)
    assert read.request_uri
    assert read.expires_at is not None
    assert NOW < read.expires_at <= NOW + timedelta(hours=1)


def accounts(reply: RawReply) -> None:
    assert all(option.id for option in read_lookup(CHOICE, CHOICE.post_auth[0], reply))


def registered(reply: RawReply) -> None:
    assert read_registration(reply, asked_auth="client_secret_basic").client_id


READERS: tuple[Callable[[RawReply], Any], ...] = (
    tokens,
    reshaped,
    pushed,
    accounts,
    registered,
    lambda reply: read_revocation(PLAIN, reply),
    lambda reply: read_introspection(PLAIN, reply),
    lambda reply: read_device_authorization(PLAIN, reply, NOW),
    lambda reply: read_device_token(PLAIN, reply, requested_scopes=("read",), now=NOW),
    lambda reply: read_exchanged_token(PLAIN, reply, requested_scopes=("read",), now=NOW),
    lambda reply: read_temporary_credentials(PLAIN, reply),
    lambda reply: read_token_credentials(PLAIN, reply, now=NOW),
)


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=50)
@given(
    body=BODIES,
    status=st.sampled_from([200, 201, 204, 302, 400, 401, 404, 428, 429, 500, 503]) | st.integers(100, 599),
    header=st.text(max_size=12),
)
def test_reader_returns_or_raises_failure(
    read: Callable[[RawReply], Any], body: bytes, status: int, header: str
) -> None:
    try:
        read(RawReply(status, {"retry-after": header, "date": header}, body))
    except Failure:
        return
