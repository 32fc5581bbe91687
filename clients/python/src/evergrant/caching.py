"""Leases kept in this process. Decides what may be served again; keeps no thread and no clock.

A cached lease can outlive a revocation, by the bound that the client was given and no longer: it
is served for that long after it was asked for, then Evergrant is asked again.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock

from evergrant.models import Lease

CACHE_LEASES_FOR = timedelta(seconds=30)
_MARGIN = timedelta(seconds=30)  # smaller than the server's, which refreshes before this one asks
_MOST = 10_000

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What a cached lease was asked for. `min_ttl` isn't in it: that is judged when it is served."""

    integration: str
    subject: str
    label: str
    scopes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Kept:
    lease: Lease
    since: datetime
    until: datetime | None  # by this machine's clock; None for a token that never expires
    margin: timedelta


@dataclass(frozen=True, slots=True)
class CacheTicket:
    """A question under way: when it was asked, and how much had been forgotten by then."""

    started_at: datetime
    invalidations: int


class LeaseCache:
    """Threads may share one. `bound` of zero keeps nothing; negative raises ValueError."""

    def __init__(self, bound: timedelta, clock: Clock) -> None:
        if bound < timedelta(0):
            raise ValueError("cache_leases_for is a time, or zero to keep no lease")
        self._bound = bound
        self._clock = clock
        self._kept: OrderedDict[CacheKey, _Kept] = OrderedDict()
        self._forgotten = 0
        self._lock = Lock()

    def get(self, key: CacheKey, min_ttl: timedelta | None) -> Lease | None:
        """A lease that is young enough and valid for long enough, or None."""
        now = self._clock()
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            # a clock that was set back makes an age negative: unknown, so too old
            if not timedelta(0) <= now - kept.since < self._bound:
                del self._kept[key]
                return None
            if kept.until is not None and kept.until - now <= max(min_ttl or timedelta(0), kept.margin):
                return None
            self._kept.move_to_end(key)
            return kept.lease

    def begin_request(self) -> CacheTicket:
        return CacheTicket(self._clock(), self._forgotten)

    def store(self, key: CacheKey, lease: Lease, asked: CacheTicket, server_time: datetime | None) -> None:
        """Keep an answer, unless something was forgotten while it was under way.

        Its age counts from the question: a revocation may be younger than that. `server_time` is
        the server's clock when it answered; without it both clocks are taken for equal.
        """
        if not self._bound:
            return
        until, margin = None, timedelta(0)
        if lease.expires_at is not None:
            left = lease.expires_at - (server_time or self._clock())
            # `Date` has whole seconds, and the token was under way for a while: count from the question
            until = asked.started_at + left - timedelta(seconds=1 if server_time else 0)
            margin = min(_MARGIN, max(left, timedelta(0)) / 10)
        with self._lock:
            if asked.invalidations != self._forgotten:
                return
            self._kept[key] = _Kept(lease, asked.started_at, until, margin)
            self._kept.move_to_end(key)
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)

    def invalidate(self, connection_id: str, up_to: int | None = None) -> None:
        """Drop a connection's leases (of generations up to `up_to`), and those under way."""
        with self._lock:
            self._forgotten += 1
            for key, kept in list(self._kept.items()):
                old = up_to is None or kept.lease.generation <= up_to
                if kept.lease.connection_id == connection_id and old:
                    del self._kept[key]
