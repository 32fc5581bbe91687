"""Security events (RFC 8417, RFC 8935): each attack carried out, and what a believed one does."""

import asyncio
import hashlib
import hmac
import json
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.integrations import Integration
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets, read_tokens
from tests.fakes.api import OTHER, Api
from tests.fakes.events.security_events import (
    HEARD,
    REFRESH,
    TRANSMITTER,
    granted,
    push,
    receiver,
    state,
    unix,
    world,
)
from tests.fakes.events.transmitter import (
    ISSUER,
    SESSIONS_REVOKED,
    TOKEN_REVOKED,
    TOKENS_REVOKED,
    VERIFICATION,
    Transmitter,
)


async def test_rfc8935_2_a_believed_event_stops_leases_and_is_answered_202(api: Api):
    connection, path, key = await world(api)
    assert (await api.lease(key)).status_code == 200
    answer = await push(api, path, TRANSMITTER.token(unix(api)))
    assert (answer.status_code, answer.content) == (202, b"")
    refused = await api.lease(key)
    assert (refused.status_code, refused.json()["reason"]) == (409, "grant_revoked_elsewhere")
    assert await state(api, connection) is LifecycleState.NEEDS_REAUTH
    event, ended = await api.records(*HEARD)
    assert {event.action, ended.action} == {AuditAction.SECURITY_EVENT, AuditAction.REVOKED_AT_PROVIDER}
    assert event.context.by == "provider:gitlab"


FORGED = Transmitter()
ATTACKS: dict[str, dict[str, Callable[[float], bytes]]] = {
    "invalid_issuer": {
        "another issuer": lambda at: TRANSMITTER.token(at, iss="https://evil.example/"),
        "issuer without its slash": lambda at: TRANSMITTER.token(at, iss=ISSUER[:-1]),
        "no issuer": lambda at: TRANSMITTER.token(at, iss=None),
    },
    "invalid_audience": {
        "another audience": lambda at: TRANSMITTER.token(at, aud="client-2"),
        "audience as a prefix": lambda at: TRANSMITTER.token(at, aud="client-10"),
        "an audience of objects": lambda at: TRANSMITTER.token(at, aud=[{"a": 1}]),
        "no audience": lambda at: TRANSMITTER.token(at, aud=None),
    },
    "invalid_key": {
        "alg none": TRANSMITTER.unsigned,
        "HS256 with the public key": TRANSMITTER.signed_with_public_key,
    },
    "authentication_failed": {
        "signed by somebody else": lambda at: TRANSMITTER.token(at, key=FORGED.key),
        "a key of another kind": lambda at: TRANSMITTER.token(
            at, header={"alg": "ES256", "kid": "ec-1"}, key=FORGED.ec
        ),
    },
    "invalid_request": {
        "unknown crit": lambda at: _with_header(TRANSMITTER.token(at), {"crit": ["x"], "x": 1}),
        "an unencoded payload": lambda at: _with_header(TRANSMITTER.token(at), {"b64": False}),
        "another typ": lambda at: TRANSMITTER.token(at, header={"typ": "JWT"}),
        "an id token": lambda at: TRANSMITTER.token(at, header={"typ": None}, sub="account-1", exp=at + 60),
        "no typ, and an expiry": lambda at: TRANSMITTER.token(at, header={"typ": None}, exp=at + 60),
        "a subject at the top": lambda at: TRANSMITTER.token(at, sub="account-1"),
        "no jti": lambda at: TRANSMITTER.token(at, jti=None),
        "half a character for a jti": lambda at: TRANSMITTER.token(at, jti="\ud800"),
        "NUL in a jti": lambda at: TRANSMITTER.token(at, jti="a\0b"),
        "half a character in an event's name": lambda at: TRANSMITTER.token(at, kind="\ud800"),
        "no iat": lambda at: TRANSMITTER.token(at, undated=True),
        "from the future": lambda at: TRANSMITTER.token(at + 301),
        "too old to know whether it is a replay": lambda at: TRANSMITTER.token(at - 31 * 86_400),
        "no events": lambda at: TRANSMITTER.token(at, events={}),
        "not a token": lambda at: b"hello",
        "too large": lambda at: TRANSMITTER.token(at, filler="x" * 70_000),
        "JSON that nests too deep": lambda at: b"W" * 40_000 + b".e30.c2ln",
    },
}


def _with_header(token: bytes, more: dict[str, Any]) -> bytes:
    """Altered headers don't verify; these must be refused before anybody looks."""
    head, payload, signature = token.split(b".")
    header = json.loads(urlsafe_b64decode(head + b"=" * (-len(head) % 4))) | more
    return urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=") + b"." + payload + b"." + signature


async def test_rfc8935_2_4_what_is_not_believed_changes_nothing_and_writes_nothing(api: Api):
    connection, path, _ = await world(api)
    attacks = [(name, make, err) for err, found in ATTACKS.items() for name, make in found.items()]
    for name, make, err in attacks:
        answer = await push(api, path, make(unix(api)))
        assert (answer.status_code, answer.json()["err"]) == (400, err), name
        assert "account-1" not in answer.text
    untyped = await push(api, path, TRANSMITTER.token(unix(api)), "application/json")  # section 2.1
    assert (untyped.status_code, untyped.json()["err"]) == (400, "invalid_request")
    assert await state(api, connection) is LifecycleState.ACTIVE
    assert await api.records(*HEARD) == []


NOBODY: tuple[dict[str, Any], ...] = (
    {"subject_type": "iss-sub", "iss": "https://another.example/", "sub": "account-1"},
    {"subject_type": "iss-sub", "iss": ISSUER, "sub": "account-2"},
    {"subject_type": "iss-sub", "sub": "account-1"},
    {"format": "email", "email": "account-2@example.com"},
    {"format": "opaque", "id": "account-2"},
    {"format": "account", "uri": "acct:account-1@example.com"},
    {"format": "aliases", "identifiers": [{"format": "aliases", "identifiers": []}, "junk"]},
    {"format": "oauth_token", "token_type": "refresh_token", "token_identifier_alg": "md5", "token": "x"},
    {"format": "iss_sub", "iss": ISSUER, "sub": ["account-1"]},
    {"format": "email", "email": "\ud800"},
    {"format": "email", "email": "a\0b"},
    {"format": "iss_sub", "iss": ISSUER, "sub": "\ud800"},
    {"format": "iss_sub", "iss": [], "sub": "account-1"},
    {"format": "iss_sub", "iss": {}, "sub": "account-1"},
    {"format": "aliases", "identifiers": [None, {"format": "email", "email": "\ud800"}]},
)


async def test_rfc9493_a_subject_that_is_nobodys_here_is_heard_and_changes_nothing(api: Api):
    connection, path, _ = await world(api)
    for subject in NOBODY:
        answer = await push(api, path, TRANSMITTER.token(unix(api), subject=subject))
        assert answer.status_code == 202, subject
    for name in ("prefix", "hash_base64_sha512_sha512"):
        subject = {"token": "\ud800", "token_identifier_alg": name} | GOOGLES
        token = TRANSMITTER.token(unix(api), kind=TOKEN_REVOKED, subject=subject)
        assert (await push(api, path, token)).status_code == 202, name
    assert await state(api, connection) is LifecycleState.ACTIVE


async def test_a_replayed_event_is_acknowledged_and_changes_nothing(api: Api):
    connection, path, _ = await world(api)
    token = TRANSMITTER.token(unix(api))
    await push(api, path, token)
    await api.install(connection, "at-2")  # the subject has consented again, in the same second
    assert (await push(api, path, token)).status_code == 202
    assert await state(api, connection) is LifecycleState.ACTIVE
    assert len(await api.records(AuditAction.SECURITY_EVENT)) == 1


async def test_an_event_older_than_the_grant_is_recorded_and_ignored(api: Api):
    connection, path, _ = await world(api)
    assert (await push(api, path, TRANSMITTER.token(unix(api) - 3001))).status_code == 202
    assert await state(api, connection) is LifecycleState.ACTIVE
    (heard,) = await api.records(AuditAction.PROVIDER_REPORT_RECEIVED)
    assert heard.detail["verdict"] == "outdated"
    told = TRANSMITTER.token(unix(api), toe=unix(api) - 3001)
    await push(api, path, told)
    assert await state(api, connection) is LifecycleState.ACTIVE


async def test_told_just_after_a_consent_without_its_moment_it_is_a_reason_to_look(api: Api):
    """The subject revoked and consented again before the transmitter got round to telling."""
    key = await api.app_with("admin", Action.ADMIN, Action.TOKEN)
    connection = await granted(api, await api.integration())
    path = await receiver(api, key)
    api.clock.advance(30)
    await push(api, path, TRANSMITTER.token(unix(api)))
    assert await state(api, connection) is LifecycleState.ACTIVE
    (heard,) = await api.records(AuditAction.PROVIDER_REPORT_RECEIVED)
    assert heard.detail["verdict"] == "refresh_requested"
    await push(api, path, TRANSMITTER.token(unix(api), toe=unix(api) - 5))
    assert await state(api, connection) is LifecycleState.NEEDS_REAUTH


async def test_another_tenants_subject_is_not_touched(api: Api):
    """Same provider, same client id, same account: what comes in here is about our connections alone."""
    _, path, _ = await world(api)
    theirs = await granted(api, await api.integration(tenant=OTHER))
    second = await granted(api, await api.integration("second"))
    await push(api, path, TRANSMITTER.token(unix(api)))
    assert await state(api, theirs) is LifecycleState.ACTIVE
    assert await state(api, second) is LifecycleState.ACTIVE


DOUBLE = hashlib.sha512(hashlib.sha512(REFRESH.encode()).digest()).digest()


BY_SUB = {"format": "iss_sub", "iss": ISSUER, "sub": "account-1"}
GOOGLES = {"subject_type": "oauth_token", "token_type": "refresh_token"}


@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        (TOKENS_REVOKED, BY_SUB),
        (TOKENS_REVOKED, {"subject_type": "id_token_claims", "iss": ISSUER, "sub": "account-1"}),
        (TOKENS_REVOKED, {"format": "email", "email": "Account-1@Example.com"}),
        (TOKENS_REVOKED, {"format": "opaque", "id": "account-1"}),
        (TOKENS_REVOKED, {"format": "complex", "user": BY_SUB}),
        (TOKENS_REVOKED, {"format": "aliases", "identifiers": [{"format": "opaque", "id": "account-1"}]}),
        (TOKEN_REVOKED, {"token_identifier_alg": "prefix", "token": REFRESH[:16]} | GOOGLES),
        (
            TOKEN_REVOKED,
            {"token_identifier_alg": "hash_base64_sha512_sha512", "token": b64encode(DOUBLE).decode()}
            | GOOGLES,
        ),
    ],
)
async def test_rfc9493_subjects_and_googles_tokens(api: Api, kind: str, subject: dict[str, Any]):
    connection, path, _ = await world(api)
    await push(api, path, TRANSMITTER.token(unix(api), kind=kind, subject=subject))
    assert await state(api, connection) is LifecycleState.NEEDS_REAUTH


BOTH_OF_SLACK = {
    "ok": True,
    "access_token": "xoxb-1",
    "token_type": "bot",
    "bot_user_id": "B1",
    "team": {"id": "T1"},
    "authed_user": {"id": "U1", "access_token": "xoxp-1", "token_type": "user"},
}


async def slacks(api: Api, integration: Integration, tokens: TokenSet, label: str) -> Connection:
    connection = await api.connection(integration, label=label)
    now = api.clock.now()
    after = connection.granted(now)
    grant = Grant.from_tokens(tokens, generation=1, requested=(), at=now)
    async with api.worker.write() as tx:
        return await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=connection.revision)


@pytest.mark.parametrize(("ended", "user", "left"), [("oauth", "U1", "default"), ("bot", "B1", "user")])
async def test_slacks_report_of_a_user_s_token_leaves_the_bot_s_alone_and_the_other_way_round(
    api: Api, ended: str, user: str, left: str
):
    """One consent brought both, and each reply's facts name the user and the bot."""
    integration, key = await api.integration(provider="slack"), await api.app_with("admin", Action.ADMIN)
    spec, reply = api.parts.registry.get("slack"), RawReply(200, {}, json.dumps(BOTH_OF_SLACK).encode())
    first = read_tokens(spec, reply, requested_scopes=(), refreshing=False)
    (second,) = additional_token_sets(spec, reply).values()
    second = second.model_copy(update={"metadata": first.metadata | second.metadata})
    held = {
        "default": await slacks(api, integration, first, "default"),
        "user": await slacks(api, integration, second, "user"),
    }
    body = {"kind": "slack", "secret": "hush-hush-signing"}
    made = await api.call("PUT", "/v1/integrations/crm/security-events", key, json=body)
    api.clock.advance(3000)
    event = {"type": "tokens_revoked", "tokens": {ended: [user]}}
    told = {"team_id": "T1", "event_id": "Ev1", "event_time": unix(api), "event": event}
    raw, at = json.dumps(told).encode(), str(unix(api))
    signature = hmac.new(b"hush-hush-signing", b"v0:" + at.encode() + b":" + raw, "sha256").hexdigest()
    headers = {"X-Slack-Request-Timestamp": at, "X-Slack-Signature": f"v0={signature}"}
    path = made.json()["url"].removeprefix(api.parts.settings.public_url)
    wrong = await api.client.post(path, content=raw + b" ", headers=headers)
    assert (wrong.status_code, wrong.json()["err"]) == (400, "authentication_failed")
    assert (await api.client.post(path, content=raw, headers=headers)).status_code in (200, 202)
    alive = [name for name, it in held.items() if await state(api, it) is LifecycleState.ACTIVE]
    assert alive == [left]


async def test_a_session_that_ended_asks_for_a_refresh(api: Api):
    connection, path, key = await world(api)
    await push(api, path, TRANSMITTER.token(unix(api), kind=SESSIONS_REVOKED))
    assert await state(api, connection) is LifecycleState.ACTIVE
    assert (await api.lease(key)).status_code == 200
    assert "rotate" in [message.name for message in await api.outbox()]


async def test_ssf_verification_is_answered_and_its_state_recorded(api: Api):
    _, path, key = await world(api)
    for said, shown in (("VGhpcyBpcyBh", "VGhpcyBpcyBh"), ("\ud800", "")):
        token = TRANSMITTER.token(unix(api), kind=VERIFICATION, event={"state": said})
        assert (await push(api, path, token)).status_code == 202
        log = await api.get("/v1/audit", key)
        assert (log.status_code, log.json()["items"][-1]["detail"]["state"]) == (200, shown)
        api.clock.advance(1)


async def test_an_ec_key_and_a_token_without_typ_are_as_good(api: Api):
    connection, path, _ = await world(api)
    token = TRANSMITTER.token(unix(api), header={"alg": "ES256", "kid": "ec-1", "typ": None})
    assert (await push(api, path, token)).status_code == 202
    assert await state(api, connection) is LifecycleState.NEEDS_REAUTH


async def test_an_unknown_key_has_the_keys_read_once_in_a_while(api: Api):
    """Nobody makes us call a transmitter by sending noise."""
    _, path, _ = await world(api)
    api.clock.advance(600)

    async def asked() -> int:
        async with api.store.read() as tx:
            return await tx.outbox.depth(api.clock.now())

    before = await asked()
    unknown = [TRANSMITTER.token(unix(api), header={"kid": "newer"}) for _ in range(5)]
    answers = await asyncio.gather(*(push(api, path, token) for token in unknown))
    for answer in [*answers, await push(api, path, unknown[0])]:
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "10"
    assert await asked() == before + 1
    receiver_id = path.rpartition("/")[2]
    async with api.worker.write() as tx:  # the worker has read them, and the key isn't among them
        found = await tx.receivers.find_in_any_tenant(receiver_id)
        await tx.receivers.replace(
            found.model_copy(update={"keys_at": api.clock.now()}), expected=found.revision
        )
    answer = await push(api, path, TRANSMITTER.token(unix(api), header={"kid": "newer"}))
    assert (answer.status_code, answer.json()["err"]) == (400, "invalid_key")
    assert await asked() == before + 1


@pytest.mark.parametrize(
    "receiver_id", ["rcv_0000000000000000000000", "int_0000000000000000000000", "x", "%00"]
)
async def test_an_address_that_is_nobodys_is_404(api: Api, receiver_id: str):
    answer = await push(api, f"/v1/security-events/{receiver_id}", b"x")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
