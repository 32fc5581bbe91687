"""What every verifier takes and gives, and the steps that most of them share."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeGuard

from evergrant_server.core.provider_events.external_revocation import Certainty
from evergrant_server.core.provider_events.receivers import AccountIdentifier
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text

TIMESTAMP_TOLERANCE = timedelta(minutes=5)  # how far a signed moment may be from now
MAX_ID_LENGTH = 256
ACCOUNT_ID = "account"  # a mark that the receiver's `account_in` gives its meaning


@dataclass(frozen=True)
class EventRequest:
    """One request. Header names are in lower case; the body is as it came."""

    headers: Mapping[str, str]
    body: bytes
    now: datetime


@dataclass(frozen=True)
class EventTrust:
    """What a request is verified by. `issuers` are those whose subjects are this integration's."""

    secret: Secret | None = None
    issuer: str | None = None
    issuers: frozenset[str] = frozenset()
    audience: tuple[str, ...] = ()
    client_id: str = ""
    keys: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class ProviderEvent:
    """One thing that happened. A connection is meant that bears every mark of one of `accounts`.

    `issued`: `at` is when it was told; it happened at some moment before.
    """

    kind: str
    certainty: Certainty
    accounts: tuple[frozenset[AccountIdentifier], ...] = ()
    at: datetime | None = None
    at_is_issue_time: bool = False


@dataclass(frozen=True)
class VerifiedEvents:
    """A request that is what it says. `id` is the same when it comes again."""

    id: str
    events: tuple[ProviderEvent, ...] = ()
    audit_detail: Mapping[str, str] = field(default_factory=dict)  # worth a record though nothing follows
    reply: dict[str, str] | None = None  # what the provider wants to hear, instead of nothing


class EventRejected(Exception):
    """Not believed. `err` is a code of RFC 8935 section 2.4; nothing of the request is quoted."""

    def __init__(self, err: str, description: str) -> None:
        super().__init__(f"{err}: {description}")
        self.error = err
        self.description = description


class UnknownKey(Exception):
    """Signed with a key that is not pinned: its transmitter may have a newer one."""


class Verifier(Protocol):
    def __call__(self, it: EventRequest, trust: EventTrust) -> VerifiedEvents: ...


def accounts_with_id(value: object) -> tuple[frozenset[AccountIdentifier], ...]:
    """Whoever the provider calls by this id; nobody, when it is no id."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ()
    name = str(value)
    return (frozenset({AccountIdentifier(ACCOUNT_ID, name)}),) if is_identifier(name) else ()


def is_identifier(value: object) -> TypeGuard[str]:
    """A text that can be compared with what we keep. JSON may name half a character: nobody is called so."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and is_storable_text(value)


def checked_challenge(value: str) -> str:
    """What a provider wants back in our answer. Raises Refused for what can't be said again."""
    if not is_storable_text(value):
        raise EventRejected("invalid_request", "What is to be answered holds NUL, or half a character.")
    return value


def secret_key(trust: EventTrust) -> bytes:
    if trust.secret is None:
        raise EventRejected("authentication_failed", "No signing secret is configured.")
    return trust.secret.reveal().encode()


def equal_in_constant_time(expected: str, given: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


def hmac_hex(key: bytes, *parts: bytes) -> str:
    return hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest()


def require_signature(signature_holds: bool) -> None:
    if not signature_holds:
        raise EventRejected("authentication_failed", "The signature doesn't hold.")


def signed_timestamp(text: str, now: datetime) -> datetime:
    """A moment in Unix seconds that the signature covers. Raises Refused outside the window."""
    moment = from_unix(text) if text.isascii() and text.isdigit() else None
    if moment is None or abs(now - moment) > TIMESTAMP_TOLERANCE:
        raise EventRejected("invalid_request", "The timestamp is missing, or too far from now.")
    return moment


def from_unix(value: object, *, unit: float = 1) -> datetime | None:
    """A moment given as a number of seconds (times `unit`) since 1970; None when it is none."""
    try:
        return datetime.fromtimestamp(float(str(value)) * unit, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises Refused."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EventRejected("invalid_request", "The body is not a JSON object.")
    return value


def nested(value: object, *names: str) -> Any:
    """A member inside objects, or None."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def sha256_hex(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()
