"""Verifiers accept the providers' documented examples and reject changed requests."""

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.provider_events import AccountIdentifier, Certainty, ReceiverKind
from evergrant_server.core.secret import Secret
from providers.events.base import EventRejected, EventRequest, EventTrust, VerifiedEvents
from providers.events.keys import parse_jwks
from providers.events.verifiers import VERIFIERS, hmac_hex
from tests.fakes.events.transmitter import Transmitter

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
UNIX = str(int(NOW.timestamp()))
TRUST = EventTrust(secret=Secret("hush"), client_id="client-1")


def hear(
    kind: ReceiverKind, body: bytes, headers: dict[str, str], trust: EventTrust = TRUST, now=NOW
) -> VerifiedEvents:
    return VERIFIERS[kind](EventRequest(headers, body, now), trust)


Made = tuple[bytes, dict[str, str]]


def v0_signed(body: dict[str, object], at: str, prefix: str, timestamp: str) -> Made:
    raw = json.dumps(body).encode()
    signature = hmac.new(b"hush", b"v0:" + at.encode() + b":" + raw, hashlib.sha256).hexdigest()
    return raw, {timestamp: at, f"{prefix}-signature": f"v0={signature}"}


def slack(body: dict[str, object], at: str = UNIX) -> Made:
    return v0_signed(body, at, "x-slack", "x-slack-request-timestamp")


def slack_event(event: dict[str, object], **more: object) -> Made:
    return slack({"type": "event_callback", "team_id": "T1", "event_id": "Ev1", "event": event} | more)


def zoom(body: dict[str, object], at: str = UNIX) -> Made:
    return v0_signed(body, at, "x-zm", "x-zm-request-timestamp")


def github(body: dict[str, object], event: str = "github_app_authorization") -> Made:
    raw = json.dumps(body).encode()
    signature = hmac.new(b"hush", raw, hashlib.sha256).hexdigest()
    return raw, {"x-hub-signature-256": f"sha256={signature}", "x-github-event": event}


def test_every_kind_has_a_verifier():
    assert set(VERIFIERS) == set(ReceiverKind)


def test_slack_documented_signature():
    """docs.slack.dev, "Verifying requests from Slack"."""
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlg"
        b"cZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    signature = hmac_hex(b"8f742231b10e8888abcd99yyyzzz85a5", b"v0:1531420618:" + body)
    assert signature == "a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"


def test_github_documented_signature():
    """docs.github.com, "Validating webhook deliveries"."""
    trust = EventTrust(secret=Secret("It's a Secret to Everybody"))
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    heard = hear(ReceiverKind.GITHUB, b"Hello, World!", {"x-hub-signature-256": signature}, trust)
    assert heard.events == ()
    with pytest.raises(EventRejected):
        hear(ReceiverKind.GITHUB, b"Hello, World?", {"x-hub-signature-256": signature}, trust)


def test_slack_revoked_tokens_and_uninstall():
    revoked = {"type": "tokens_revoked", "tokens": {"oauth": ["U1"], "bot": ["B1"]}}
    heard = hear(ReceiverKind.SLACK, *slack_event(revoked, event_time=int(UNIX) - 10))
    (it,) = heard.events
    team = AccountIdentifier("fact:team.id", "T1")
    assert heard.id == "Ev1"
    assert it.accounts == (
        frozenset(
            {team, AccountIdentifier("fact:holder", "user"), AccountIdentifier("fact:authed_user.id", "U1")}
        ),
        frozenset(
            {team, AccountIdentifier("fact:holder", "bot"), AccountIdentifier("fact:bot_user_id", "B1")}
        ),
    )
    assert (it.certainty, it.at) == (Certainty.ENDED, NOW - timedelta(seconds=10))
    gone = slack_event({"type": "app_uninstalled"})
    assert hear(ReceiverKind.SLACK, *gone).events[0].accounts == (frozenset({team}),)
    assert hear(ReceiverKind.SLACK, *slack_event({"type": "message"}, event_id=None)).events == ()


def test_slack_and_zoom_endpoint_validation():
    asked = slack({"type": "url_verification", "challenge": "3eZbrw1a"})
    assert hear(ReceiverKind.SLACK, *asked).reply == {"challenge": "3eZbrw1a"}
    asked = zoom({"event": "endpoint.url_validation", "payload": {"plainToken": "qgg8vlvZRS6UYooatFL8Aw"}})
    answer = hear(ReceiverKind.ZOOM, *asked).reply
    assert answer is not None
    assert answer["encryptedToken"] == hmac.new(b"hush", b"qgg8vlvZRS6UYooatFL8Aw", "sha256").hexdigest()


def test_zoom_deauthorized():
    body = {
        "event": "app_deauthorized",
        "event_ts": int(UNIX) * 1000 - 500,
        "payload": {"user_id": "zu-1", "client_id": "client-1"},
    }
    (it,) = hear(ReceiverKind.ZOOM, *zoom(body)).events
    assert it.accounts == (frozenset({AccountIdentifier("account", "zu-1")}),)
    assert it.at == NOW - timedelta(milliseconds=500)
    body["payload"] = {"user_id": "\ud800", "client_id": "client-1"}
    (it,) = hear(ReceiverKind.ZOOM, *zoom(body)).events
    assert it.accounts == (), "a lone surrogate is no id"
    body["payload"] = {"user_id": "zu-1", "client_id": "another app"}
    assert hear(ReceiverKind.ZOOM, *zoom(body)).events == ()


HALVES = ["\ud800", "a\0b"]


@pytest.mark.parametrize("half", HALVES)
def test_slack_ignores_invalid_ids(half: str):
    event = {"type": "tokens_revoked", "tokens": {"oauth": [half, "U1"], "bot": [half]}}
    (it,) = hear(ReceiverKind.SLACK, *slack_event(event)).events
    user = (AccountIdentifier("fact:holder", "user"), AccountIdentifier("fact:authed_user.id", "U1"))
    assert it.accounts == (frozenset({AccountIdentifier("fact:team.id", "T1"), *user}),)
    assert hear(ReceiverKind.SLACK, *slack_event(event, team_id=half)).events == ()
    with pytest.raises(EventRejected, match="event_id"):
        hear(ReceiverKind.SLACK, *slack_event(event, event_id=half))


@pytest.mark.parametrize("half", HALVES)
def test_invalid_challenge_rejected(half: str):
    with pytest.raises(EventRejected, match="challenge holds"):
        hear(ReceiverKind.SLACK, *slack({"type": "url_verification", "challenge": half}))
    with pytest.raises(EventRejected, match="challenge holds"):
        hear(ReceiverKind.ZOOM, *zoom({"event": "endpoint.url_validation", "payload": {"plainToken": half}}))


def test_github_revocation_is_uncertain():
    heard = hear(ReceiverKind.GITHUB, *github({"action": "revoked", "sender": {"id": 7, "login": "ann"}}))
    (it,) = heard.events
    assert it.certainty is Certainty.SUSPECTED
    assert it.accounts == (
        frozenset({AccountIdentifier("account", "7")}),
        frozenset({AccountIdentifier("account", "ann")}),
    )
    assert hear(ReceiverKind.GITHUB, *github({"action": "opened"}, "issues")).events == ()


def test_meta_signed_request():
    """The example of a published test of the same algorithm, and one with a user."""
    trust = EventTrust(secret=Secret("secret"))
    known = (
        "vlXgu64BQGFSQrY0ZcJBZASMvYvTHu9GQ0YM9rjPSso.eyJhbGdvcml0aG0iOiJITUFDLVNIQTI1NiIsIjAiOiJwYXlsb2FkIn0"
    )
    heard = hear(ReceiverKind.META, b"signed_request=" + known.encode(), {}, trust)
    assert heard.events[0].accounts == ()
    for other in (known[:-1] + "1", "x" + known[1:], "", ".", "no-dot"):
        with pytest.raises(EventRejected):
            hear(ReceiverKind.META, b"signed_request=" + other.encode(), {}, trust)


@pytest.mark.parametrize(("kind", "make"), [(ReceiverKind.SLACK, slack), (ReceiverKind.ZOOM, zoom)])
@pytest.mark.parametrize("seconds", [-301, 301])
def test_old_or_future_timestamp_rejected(kind: ReceiverKind, make, seconds: int):
    body = {"event": "app_deauthorized", "type": "event_callback"}
    with pytest.raises(EventRejected, match="timestamp"):
        hear(kind, *make(body, str(int(UNIX) + seconds)))


@pytest.mark.parametrize(
    ("kind", "make"),
    [(ReceiverKind.SLACK, slack), (ReceiverKind.ZOOM, zoom), (ReceiverKind.GITHUB, github)],
)
def test_changed_request_rejected(kind: ReceiverKind, make):
    body, headers = make({"event": "app_deauthorized", "action": "revoked"})
    hear(kind, body, headers)
    other = {name: it[:-1] + ("0" if it[-1] != "0" else "1") for name, it in headers.items()}
    other.pop("x-github-event", None)
    changed = [(body + b" ", headers), (body, {}), *((body, headers | {name: other[name]}) for name in other)]
    for other_body, other_headers in changed:
        with pytest.raises(EventRejected):
            hear(kind, other_body, other_headers)
    for trust in (EventTrust(secret=Secret("other")), EventTrust()):
        with pytest.raises(EventRejected):
            hear(kind, body, headers, trust)


def test_jwk_set_keeps_only_public_signature_keys():
    transmitter = Transmitter()
    private = transmitter.key.as_dict(private=True)
    more = [{"kty": "oct", "k": "c2VjcmV0"}, {"kty": "RSA", "use": "enc", "n": "x", "e": "AQAB"}, "junk"]
    kept = parse_jwks(json.dumps({"keys": [private, *more]}).encode())
    assert [set(key) for key in kept] == [{"kty", "kid", "use", "n", "e"}]
