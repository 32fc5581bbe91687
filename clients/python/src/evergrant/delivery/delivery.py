"""One token in one place: leased, renewed before it ends, written when it changes, deleted when refused.

What Evergrant refuses is deleted at once. While it can't answer, what is there stays until the token ends.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from evergrant.errors import (
    BadRequest,
    ClientMisconfigured,
    EvergrantError,
    PlatformUnavailable,
    ProtocolError,
    ProviderUnavailable,
    Unreachable,
)
from evergrant.lease import Lease
from evergrant.models import ConsentRequired
from evergrant.sync_client import Evergrant

# after which the token that is there may be as good as before
_MAY_PASS = (Unreachable, PlatformUnavailable, ProviderUnavailable, ProtocolError, ClientMisconfigured)
_BOUND = "the token is bound to a key: each request needs a proof, which no file has"
_SOONEST_S = 1.0
_MOST_DOUBLED = 10


class Format(StrEnum):
    """What is written: the token alone, a line for `curl -H @FILE`, a line for a shell, or an object."""

    TOKEN = "token"
    HEADER = "header"
    ENV = "env"
    JSON = "json"


def rendered(lease: Lease, format: Format) -> str:
    """The lease as text. It holds the token."""
    match format:
        case Format.TOKEN:
            return lease.access_token
        case Format.HEADER:
            return f"Authorization: {lease.token_type} {lease.access_token}\n"
        case Format.ENV:
            return f"ACCESS_TOKEN={lease.access_token}\n"
        case Format.JSON:
            members = {
                "access_token": lease.access_token,
                "token_type": lease.token_type,
                "expires_at": lease.expires_at and lease.expires_at.isoformat(),
                "scopes": list(lease.scopes),
                "generation": lease.generation,
            }
            return json.dumps(members, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Order:
    """Whose token is wanted, and as what."""

    integration: str
    subject: str
    label: str = "default"
    scopes: tuple[str, ...] | None = None
    format: Format = Format.TOKEN


@dataclass(frozen=True, slots=True)
class Pace:
    """`look`: between looks at the connection, which no audit record has. `lease`: between leases, after each
    of which a permit that has ended is noticed. `ahead`: before its end a token is renewed. `unanswered`: for
    how long a token stays where Evergrant gives no answer; None: until it ends."""

    look: timedelta = timedelta(seconds=15)
    lease: timedelta = timedelta(minutes=5)
    ahead: timedelta = timedelta(minutes=5)
    unanswered: timedelta | None = None


class Place(Protocol):
    """Where a token is kept."""

    def write(self, lease: Lease, format: Format) -> bool:
        """Write it, unless the place has it already; says whether it was written."""
        ...

    def remove(self) -> bool:
        """Delete what was written; says whether there was something."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an order has done. `refusal` is why there is no token, `delay` why it isn't known."""

    wait_s: float
    written: bool = False
    removed: bool = False
    refusal: EvergrantError | None = None
    delay: EvergrantError | None = None


class Delivery:
    """Keeps the token of one order in one place. Belongs to one thread."""

    def __init__(
        self,
        client: Evergrant,
        order: Order,
        place: Place,
        pace: Pace,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`client` must keep no leases: each of them is to be judged."""
        self.order, self.place = order, place
        self._client, self._pace, self._now = client, pace, now
        self._lease: Lease | None = None
        self._revision: int | None = None
        self._answered_at: datetime | None = None  # the last lease, or the start
        self._leased_at: datetime | None = None
        self._refusals = 0  # in a row

    def look(self) -> Look:
        """Do what is due now. Raises OSError and what else the place raises."""
        lease, now = self._lease, self._now()
        self._answered_at = self._answered_at or now
        if lease is None:
            return self._renew(now, None)
        try:
            revision = self._client.connection(lease.connection_id).revision
        except EvergrantError as error:
            if isinstance(error, _MAY_PASS):
                return self._unanswered(error, now)
            revision = None  # the lease says why
        is_due = self._leased_at is None or now - self._leased_at >= self._pace.lease
        if revision is None or revision != self._revision or is_due or self._ends_soon(lease, now):
            return self._renew(now, revision)
        return Look(self._wait_s(now))

    def _renew(self, now: datetime, revision: int | None) -> Look:
        """Lease anew. `revision` is the connection's before that, so that no later change goes unseen."""
        order = self.order
        try:
            answer = self._client.lease(
                order.integration,
                order.subject,
                label=order.label,
                scopes=order.scopes,
                min_ttl=self._pace.ahead,
            )
            if isinstance(answer, ConsentRequired):
                raise answer.as_error()
            if answer.token_type.lower() == "dpop":
                raise BadRequest(
                    _BOUND, code="token_bound", repair="Use the gateway, or the client's auth()."
                )
        except EvergrantError as error:
            if isinstance(error, _MAY_PASS):
                return self._unanswered(error, now)
            return self._refused(error)
        written = self.place.write(answer, order.format)
        self._lease, self._leased_at, self._answered_at, self._revision = answer, now, now, revision
        self._refusals = 0
        return Look(self._wait_s(now), written=written)

    def _refused(self, error: EvergrantError) -> Look:
        self._lease = self._leased_at = None
        self._refusals += 1
        wait = min(self._pace.lease, self._pace.look * 2 ** min(self._refusals, _MOST_DOUBLED))
        return Look(wait.total_seconds(), removed=self.place.remove(), refusal=error)

    def _unanswered(self, error: EvergrantError, now: datetime) -> Look:
        """Keep what is there, until the token ends or the pace says so."""
        lease, longest = self._lease, self._pace.unanswered
        is_over = lease is not None and lease.expires_at is not None and lease.expires_at <= now
        too_long = (
            longest is not None and self._answered_at is not None and now - self._answered_at >= longest
        )
        wait_s = max(error.retry_after or 0.0, min(self._pace.look.total_seconds(), self._wait_s(now)))
        if not (is_over or too_long):
            return Look(wait_s, delay=error)
        self._lease = self._leased_at = None
        return Look(wait_s, removed=self.place.remove(), delay=error)

    def _ends_soon(self, lease: Lease, now: datetime) -> bool:
        return lease.expires_at is not None and lease.expires_at - now <= self._pace.ahead

    def _wait_s(self, now: datetime) -> float:
        """Seconds until the next look; for a token that ends sooner than it is renewed half of its time."""
        look_s, lease = self._pace.look.total_seconds(), self._lease
        if lease is None or lease.expires_at is None:
            return look_s
        left_s = (lease.expires_at - now).total_seconds()
        ahead_s = self._pace.ahead.total_seconds()
        due_s = left_s - ahead_s if left_s > ahead_s else left_s / 2
        return max(_SOONEST_S, min(look_s, due_s))
