"""For whoever receives Evergrant's webhooks: is a message ours, whole and new? (Standard Webhooks.)

    event = verify(body, headers, secret)     # raises WebhookRefused
    if event.type == "connection.needs_reauth":
        ask(event.data["subject"])

Needs nothing but the standard library, and no API key.
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

TOLERANCE = timedelta(minutes=5)  # between the sender's clock and ours, and on the way
_PREFIX = "whsec_"
_MOST_SIGNATURES = 20


class WebhookRefused(ValueError):
    """A message that must not be believed. `code` is stable; answer it with 400 and nothing else.

    `not_signed` (headers are missing or malformed), `too_old`, `too_new`, `bad_signature`,
    `not_an_event` (signed, but no event of ours).
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        super().__init__(f"{code}: {detail}")


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One event. `id` is the same each time it is sent: keep it, and do nothing the second time."""

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
    """The event that a request holds, once it is proven to be ours.

    `payload` is the body as it came, before any parser. `headers` may be in any case. Of several
    `secret`s (while one is rotated) any may have signed. A message further than `tolerance` from
    `now` is refused, whatever its signature: it may be a recording.

    Raises WebhookRefused, and ValueError for a secret that isn't one.
    """
    body = payload.encode() if isinstance(payload, str) else payload
    named = {name.lower(): value for name, value in headers.items()}
    id, timestamp, signatures = (named.get(f"webhook-{it}", "") for it in ("id", "timestamp", "signature"))
    if not id or not (timestamp.isascii() and timestamp.isdigit()) or not signatures:
        raise WebhookRefused("not_signed", "webhook-id, -timestamp or -signature is missing or malformed")
    keys = [_key(it) for it in ((secret,) if isinstance(secret, str) else secret)]
    signed = f"{id}.{timestamp}.".encode() + body
    if not _any_matches(keys, signed, signatures.split(" ")[:_MOST_SIGNATURES]):
        raise WebhookRefused("bad_signature", "no signature is by this secret over this body")
    _refuse_recordings(int(timestamp[:12]), tolerance, now or datetime.now(UTC))
    return _event(id, body)


def _any_matches(keys: list[bytes], signed: bytes, signatures: list[str]) -> bool:
    """Every pair is compared, in constant time each: how long it takes says nothing."""
    found = False
    for key in keys:
        expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
        for signature in signatures:
            found |= hmac.compare_digest(expected, signature.encode())
    return found


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.strip().removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:  # an empty key would be everybody's
        raise ValueError("the signing secret is not whsec_ and base64")
    return key


def _refuse_recordings(sent: int, tolerance: timedelta, now: datetime) -> None:
    age = now.timestamp() - sent
    if abs(age) > tolerance.total_seconds():
        code = "too_old" if age > 0 else "too_new"
        raise WebhookRefused(code, f"it is {abs(age):.0f} seconds {'old' if age > 0 else 'ahead'}")


def _event(id: str, body: bytes) -> WebhookEvent:
    try:
        said: object = json.loads(body)
        members = cast(dict[str, Any], said) if isinstance(said, dict) else {}
        kind, data = members["type"], members["data"]
        at = datetime.fromisoformat(members["timestamp"])
    except (ValueError, KeyError, TypeError):
        raise WebhookRefused("not_an_event", "type, timestamp or data is missing or malformed") from None
    if not isinstance(kind, str) or not isinstance(data, dict):
        raise WebhookRefused("not_an_event", "type, timestamp or data is missing or malformed")
    return WebhookEvent(id, kind, at, cast(dict[str, Any], data))
