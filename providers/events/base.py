"""The inputs and outputs of verifiers, and the steps that they share."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

from evergrant_server.core.provider_events import AccountIdentifier, Certainty
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text

TIMESTAMP_TOLERANCE = timedelta(minutes=5)  # between a signed timestamp and now
MAX_ID_LENGTH = 256
ACCOUNT_ID = "account"  # an identifier that the receiver's `account_in` gives its meaning


@dataclass(frozen=True)
class EventRequest:
    """One request. Header names are in lower case; the body is unchanged."""

    headers: Mapping[str, str]
    body: bytes
    now: datetime


@dataclass(frozen=True)
class EventTrust:
    """The keys and parties by which a request is verified. `issuers` are the issuers of known subjects."""

    secret: Secret | None = None
    issuer: str | None = None
    issuers: frozenset[str] = frozenset()
    audience: tuple[str, ...] = ()
    client_id: str = ""
    keys: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class ProviderEvent:
    """One event. It concerns a connection that has every identifier of one of `accounts`.

    With `at_is_issue_time`, `at` is when the event was issued, which is later than when it occurred.
    """

    kind: str
    certainty: Certainty
    accounts: tuple[frozenset[AccountIdentifier], ...] = ()
    at: datetime | None = None
    at_is_issue_time: bool = False


@dataclass(frozen=True)
class VerifiedEvents:
    """The verified events of a request. A repeated delivery has the same `id`."""

    id: str
    events: tuple[ProviderEvent, ...] = ()
    audit_detail: Mapping[str, str] = field(default_factory=dict)  # recorded though no event follows
    reply: dict[str, str] | None = None  # the response that the provider expects


class EventRejected(Exception):
    """The request is rejected. `error` is a code of RFC 8935 section 2.4."""

    def __init__(self, err: str, description: str) -> None:
        super().__init__(f"{err}: {description}")
        self.error = err
        self.description = description


def accounts_with_id(value: object) -> tuple[frozenset[AccountIdentifier], ...]:
    """The accounts with this provider id; none when it isn't a valid id."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ()
    name = str(value)
    return (frozenset({AccountIdentifier(ACCOUNT_ID, name)}),) if is_identifier(name) else ()


def is_identifier(value: object) -> TypeGuard[str]:
    """Whether the value is a text that the store can hold, which a lone surrogate isn't."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and is_storable_text(value)


def from_unix(value: object, *, unit: float = 1) -> datetime | None:
    """The time after a number of seconds (times `unit`) since 1970, or None."""
    try:
        return datetime.fromtimestamp(float(str(value)) * unit, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def decode_base64url(part: str) -> bytes:
    """Raises ValueError."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def json_object(text: bytes, noun: str) -> dict[str, Any]:
    """A JSON object. Raises EventRejected with `what` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EventRejected("invalid_request", noun)
    return value


def json_in_base64url(part: str, noun: str) -> dict[str, Any]:
    """As `json_object`, of a part of a signed token."""
    try:
        return json_object(decode_base64url(part), noun)
    except ValueError:
        raise EventRejected("invalid_request", noun) from None
