"""Webhooks attacked at the receiver: forged, altered, recorded, signed by a secret that is over.

Messages are signed by the server's own code, and verified by what the client gives receivers.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from evergrant.webhooks import WebhookEvent, WebhookRefused, verify
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Judge

from evergrant_server.core.events import ping_body
from evergrant_server.core.ids import EventId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import new_signing_secret, signed_headers

NOW = datetime.now(UTC) - timedelta(minutes=30)
OURS, OLD, THEIRS = (new_signing_secret(bytes([n]) * 32) for n in range(3))
BODY = ping_body(Tenant("acme"), "hooks", NOW)
ID = EventId("evt_1")
Headers = dict[str, str]


def signed(*secrets: Secret, at: datetime = NOW, body: str = BODY) -> Headers:
    return signed_headers(secrets or (OURS,), ID, at, body)


def believed(body: bytes | str, headers: Headers, secret: str | list[str], **more: Any) -> WebhookEvent:
    """Verified at the moment the messages are from: a slow run doesn't make them old."""
    return verify(body, headers, secret, **({"now": NOW} | more))


def refusal(body: bytes | str, headers: Headers, *secrets: Secret, now: datetime = NOW) -> str:
    with pytest.raises(WebhookRefused) as refused:
        verify(body, headers, [it.reveal() for it in secrets or (OURS,)], now=now)
    for secret in (OURS, OLD, THEIRS):
        assert secret.reveal() not in str(refused.value)
    return refused.value.code


def test_what_the_server_and_the_standard_package_sign_is_believed():
    event = believed(BODY.encode(), signed(), OURS.reveal())
    assert (event.id, event.type, event.data["webhook"]) == ("evt_1", "webhook.ping", "hooks")
    assert event.timestamp == NOW
    assert believed(BODY, {name.upper(): value for name, value in signed().items()}, OURS.reveal()) == event
    judge = Judge(OURS.reveal())
    headers = signed() | {"webhook-signature": judge.sign(ID, NOW.replace(tzinfo=UTC), BODY)}
    assert believed(BODY, headers, OURS.reveal()).id == ID


@given(at=st.integers(0, len(BODY) - 1), to=st.characters())
def test_an_altered_body_is_refused(at: int, to: str):
    altered = BODY[:at] + to + BODY[at + 1 :]
    if altered != BODY:
        assert refusal(altered.encode("utf-8", "surrogatepass"), signed()) == "bad_signature"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
def test_an_altered_id_or_timestamp_is_refused(name: str):
    other = {"webhook-id": "evt_2", "webhook-timestamp": str(int(NOW.timestamp()) + 1)}[name]
    assert refusal(BODY, signed() | {name: other}) == "bad_signature"


@pytest.mark.parametrize(("after", "code"), [(301, "too_old"), (86_400 * 365, "too_old"), (-302, "too_new")])
def test_a_recording_is_refused_however_good_its_signature(after: float, code: str):
    assert refusal(BODY, signed(), now=NOW + timedelta(seconds=after)) == code
    forever = timedelta(days=1000)
    assert believed(BODY, signed(), OURS.reveal(), tolerance=forever, now=NOW + timedelta(seconds=after))
    for after in (-299, 299):
        assert believed(BODY, signed(), OURS.reveal(), now=NOW + timedelta(seconds=after)).id == ID


def test_an_old_secret_is_believed_during_its_overlap_and_not_after():
    """The sender signs with both; once the overlap is over, with the new one alone."""
    during, after = signed(OURS, OLD), signed(OURS)
    for secret in (OURS, OLD):
        assert believed(BODY, during, secret.reveal()).id == ID
    assert believed(BODY, after, OURS.reveal()).id == ID
    assert refusal(BODY, after, OLD) == "bad_signature"
    assert believed(BODY, after, [OLD.reveal(), OURS.reveal()]).id == ID, "a receiver may know both"


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_refused(missing: str):
    headers = signed()
    del headers[missing]
    assert refusal(BODY, headers) == "not_signed"
    assert refusal(BODY, headers | {missing: ""}) == "not_signed"


@pytest.mark.parametrize("timestamp", ["now", "1e9", "-1", "1.5", "0x10", "١٢٣", " 1", "9" * 400])
def test_a_strange_timestamp_is_refused(timestamp: str):
    assert refusal(BODY, signed() | {"webhook-timestamp": timestamp}) in ("not_signed", "bad_signature")


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.removeprefix("v1,"),
        lambda it: it.replace("v1,", "v2,"),
        lambda it: it.replace("v1,", "v1a,"),
        lambda it: "v1,",
        lambda it: it[:-4],
        lambda it: it.lower(),
        lambda it: "v1,é",
        lambda it: " ".join(["v1,AAAA"] * 1000 + [it]),
    ],
)
def test_a_strange_signature_is_refused(change: Callable[[str], str]):
    headers = signed()
    assert (
        refusal(BODY, headers | {"webhook-signature": change(headers["webhook-signature"])})
        == "bad_signature"
    )


def test_signatures_of_other_versions_beside_ours_do_no_harm():
    headers = signed()
    beside = f"v1a,abc {headers['webhook-signature']} v2,def"
    assert believed(BODY, headers | {"webhook-signature": beside}, OURS.reveal()).id == ID


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_???", "whsec_not base64"])
def test_a_secret_that_is_none_is_an_error_and_signs_for_nobody(secret: str):
    with pytest.raises(ValueError, match="whsec_"):
        believed(BODY, signed(), secret)
    with pytest.raises(WebhookRefused):
        believed(BODY, signed(), [])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        json.dumps({"type": 1, "timestamp": "2026-01-01T00:00:00Z", "data": {}}),
        json.dumps({"type": "x", "timestamp": "yesterday", "data": {}}),
        json.dumps({"type": "x", "timestamp": "2026-01-01T00:00:00Z", "data": []}),
        "nonsense",
    ],
)
def test_what_is_signed_and_no_event_is_refused(body: str):
    assert refusal(body, signed(body=body)) == "not_an_event"
