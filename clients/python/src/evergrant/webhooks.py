"""For the receivers of Evergrant's webhooks: verifies a message (Standard Webhooks).

    event = verify(body, headers, secret)     # raises WebhookRefused
    if event.type == "connection.needs_reauth":
        ask(event.data["subject"])

Needs only the standard library, and no API key.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

__all__ = ["TOLERANCE", "WebhookEvent", "WebhookRefused", "verify"]

TOLERANCE = timedelta(minutes=5)  # between the two clocks, transport included
_PREFIX = "whsec_"
_MAX_SIGNATURES = 20


class WebhookRefused(ValueError):
    """The message is not to be trusted. Answer it with 400. `code` is stable:

    `not_signed` (headers are missing or malformed), `too_old`, `too_new`, `bad_signature`,
    `not_an_event` (signed, but not in the format of an event).
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        super().__init__(f"{code}: {detail}")


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One event. `id` is the same in each delivery: store it, and ignore the event the second time."""

    id: str
    type: str
    timestamp: datetime
    data: Mapping[str, Any] = field(repr=False)


def verify(
    payload: bytes | str,
    headers: Mapping[str, str],
    secret: str | Iterable[str],
    *,
    tolerance: timedelta = TOLERANCE,
    now: datetime | None = None,
) -> WebhookEvent:
    """The event of a request, once its signature and its age are verified.

    `payload` is the body before any parser. `headers` may be in any case. Of several `secret`s
    (during a rotation) any may have signed. A message further than `tolerance` from `now` is refused
    even when its signature is valid: it may be a recording.

    Raises WebhookRefused, and ValueError for a malformed secret.
    """
    body = payload.encode() if isinstance(payload, str) else payload
    by_name = {name.lower(): value for name, value in headers.items()}
    id, timestamp, signatures = (
        by_name.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
    )
    if not id or not (timestamp.isascii() and timestamp.isdigit()) or not signatures:
        raise WebhookRefused("not_signed", "webhook-id, -timestamp or -signature is missing or malformed")
    keys = [_key(each) for each in ((secret,) if isinstance(secret, str) else secret)]
    try:
        signed = f"{id}.{timestamp}.".encode() + body
    except TypeError:
        why = "payload is the body as it came, before any parser: bytes, such as those of request.body()"
        raise TypeError(why) from None
    if not _any_matches(keys, signed, signatures.split(" ")[:_MAX_SIGNATURES]):
        raise WebhookRefused("bad_signature", "no signature is by this secret over this body")
    _refuse_recordings(int(timestamp[:12]), tolerance, now or datetime.now(UTC))
    return _event(id, body)


def _any_matches(keys: list[bytes], signed: bytes, signatures: list[str]) -> bool:
    """Compares every pair, each in constant time, so that the time taken reveals no match."""
    is_valid = False
    for key in keys:
        expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
        for signature in signatures:
            is_valid |= hmac.compare_digest(expected, signature.encode())
    return is_valid


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.strip().removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:  # anyone can sign with an empty key
        raise ValueError("the signing secret is not whsec_ and base64")
    return key


def _refuse_recordings(sent: int, tolerance: timedelta, now: datetime) -> None:
    age = now.timestamp() - sent
    if abs(age) > tolerance.total_seconds():
        code = "too_old" if age > 0 else "too_new"
        raise WebhookRefused(code, f"it is {abs(age):.0f} seconds {'old' if age > 0 else 'ahead'}")


def _event(id: str, body: bytes) -> WebhookEvent:
    try:
        parsed: object = json.loads(body)
        members = cast(dict[str, Any], parsed) if isinstance(parsed, dict) else {}
        event_type, data = members["type"], members["data"]
        at = datetime.fromisoformat(members["timestamp"])
    except (ValueError, KeyError, TypeError):
        event_type = data = at = None
    if not isinstance(event_type, str) or not isinstance(data, dict) or at is None:
        raise WebhookRefused("not_an_event", "type, timestamp or data is missing or malformed")
    return WebhookEvent(id, event_type, at, cast(dict[str, Any], data))
