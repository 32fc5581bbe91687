"""API keys: `evg_key_<id>_<secret><checksum>`, and what the store keeps of one.

The secret is 256 random bits in hex. The checksum is the CRC-32 of everything before it in six digits of base
62: it lets a scanner tell a key from other text, and names a mistyped key without a look into the store. The
store keeps a MAC under a key of the ring, so a row that was written by hand is no key.
"""

import re
import secrets
import string
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zlib import crc32

from evergrant_server.core.access import App, AppKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyId, new_id
from evergrant_server.crypto import KeyRing

LONGEST_LIFETIME = timedelta(days=5 * 365)

_KEY = re.compile(r"^(evg_(key_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")
_OUTDATED = re.compile(r"^evg_key_[0-9a-z]{22}_[0-9a-f]{64}\Z")
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ANOTHER = (
    "An admin creates another with POST /v1/apps/{app}/keys; "
    "the operator one for the app admin with: python -m evergrant_server keys bootstrap --again"
)


class PresentedKey(NamedTuple):
    """A key as a request presents it. Its secret isn't verified yet."""

    id: KeyId
    secret: str


def new_key(ring: KeyRing, app: App, now: datetime, lifetime: timedelta) -> tuple[AppKey, str]:
    """A new key of the app, and its text, which isn't stored."""
    secret = secrets.token_hex(32)
    key = AppKey(
        tenant=app.tenant,
        id=KeyId(new_id("key")),
        app_id=app.id,
        secret_hash="",
        created_at=now,
        expires_at=now + lifetime,
    )
    text = f"evg_{key.id}_{secret}"
    return key.__replace__(secret_hash=key_mac(ring, key, secret)), text + checksum(text)


def parse_key(text: str) -> PresentedKey:
    """The parts of a key. Raises Failure UNAUTHENTICATED, with the repair for an outdated or mistyped key."""
    match = _KEY.match(text)
    if match is None:
        if _OUTDATED.match(text):
            why = "Keys of this form, without a checksum, are no longer accepted."
            raise Failure(ErrorCode.UNAUTHENTICATED, f"{why} {_ANOTHER}")
        raise Failure(ErrorCode.UNAUTHENTICATED, "That is no API key: one is evg_key_ and 93 characters.")
    if checksum(match[1]) != match[4]:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The API key is mistyped: its checksum doesn't match.")
    return PresentedKey(KeyId(match[2]), match[3])


def key_mac(ring: KeyRing, key: AppKey, secret: str) -> str:
    """What the store keeps of a key's secret: a MAC that also covers the row's tenant, app, id and expiry."""
    expires_at = (
        "" if key.expires_at is None else key.expires_at.astimezone(UTC).isoformat(" ", "microseconds")
    )
    return ring.api_key_mac(key.tenant, key.app_id, key.id, expires_at, secret)


def expired(key: AppKey) -> Failure:
    """The failure of a request with a key whose time is over."""
    when = "" if key.expires_at is None else f" at {key.expires_at.isoformat(timespec='seconds')}"
    return Failure(ErrorCode.UNAUTHENTICATED, f"The API key expired{when}. {_ANOTHER}")


def checksum(text: str) -> str:
    left, digits = crc32(text.encode()), ""
    for _ in range(6):
        left, digit = divmod(left, 62)
        digits = _BASE62[digit] + digits
    return digits
