"""The leases of this process that may be served again. Starts no thread and reads only the given clock.

A cached lease can outlive a revocation, by the bound that the client was given and no longer: the
client serves it for that long after it was requested, then asks Evergrant again.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock

from evergrant.api.leases import LeaseRequest, LeaseResponse
from evergrant.lease import Lease

CACHE_LEASES_FOR = timedelta(seconds=30)
_MARGIN = timedelta(seconds=30)  # smaller than the server's, which refreshes before this one asks
_MAX_LEASES = 10_000

Clock = Callable[[], datetime]
CacheKey = tuple[str, str, str, tuple[str, ...] | None, bool]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class CacheTicket:
    """A lease call that is under way: when it began, and how many invalidations came before it."""

    started_at: datetime
    invalidations: int


@dataclass(frozen=True, slots=True)
class _Entry:
    lease: Lease
    since: datetime
    until: datetime | None  # by this machine's clock; None for a token that never expires
    margin: timedelta


class LeaseCache:
    """Threads may share one. A `bound` of zero caches nothing; a negative one raises ValueError."""

    def __init__(self, bound: timedelta, clock: Clock) -> None:
        if bound < timedelta(0):
            raise ValueError("cache_leases_for is a time, or zero to keep no lease")
        self._bound = bound
        self._clock = clock
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self._invalidations = 0
        self._lock = Lock()

    def get(self, request: LeaseRequest) -> Lease | None:
        """A cached lease that is young enough and valid for long enough, or None; also for a token that the
        provider's API has just refused."""
        if request.www_authenticate is not None:
            return None
        now, key = self._clock(), _key(request)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            # A clock that was set back makes an age negative: unknown, so too old.
            if not timedelta(0) <= now - entry.since < self._bound:
                del self._entries[key]
                return None
            least = max(request.min_ttl or timedelta(0), entry.margin)
            if entry.until is not None and entry.until - now <= least:
                return None
            self._entries.move_to_end(key)
            return entry.lease

    def begin_request(self) -> CacheTicket:
        return CacheTicket(self._clock(), self._invalidations)

    def store(self, request: LeaseRequest, response: LeaseResponse, ticket: CacheTicket) -> None:
        """Cache a lease, unless an invalidation came while its call was under way.

        Its age counts from the beginning of the call: a revocation may be younger than that. Without
        a server time both clocks are taken for equal.
        """
        lease = response.result
        if not self._bound or not isinstance(lease, Lease):
            return
        until, margin = None, timedelta(0)
        if lease.expires_at is not None:
            left = lease.expires_at - (response.server_time or self._clock())
            # `Date` has whole seconds, and the response took a while: count from the call's beginning.
            until = ticket.started_at + left - timedelta(seconds=1 if response.server_time else 0)
            margin = min(_MARGIN, max(left, timedelta(0)) / 10)
        with self._lock:
            if ticket.invalidations != self._invalidations:
                return
            key = _key(request)
            self._entries[key] = _Entry(lease, ticket.started_at, until, margin)
            self._entries.move_to_end(key)
            if len(self._entries) > _MAX_LEASES:
                self._entries.popitem(last=False)

    def invalidate(self, connection_id: str, up_to: int | None = None) -> None:
        """Drop a connection's leases (of generations up to `up_to`), and those of calls under way."""
        with self._lock:
            self._invalidations += 1
            for key, entry in list(self._entries.items()):
                is_old = up_to is None or entry.lease.generation <= up_to
                if entry.lease.connection_id == connection_id and is_old:
                    del self._entries[key]


def _key(request: LeaseRequest) -> CacheKey:
    """All but `min_ttl`, which is compared when the lease is served, and `challenge`, which is a link's."""
    return (request.integration, request.subject, request.label, request.scopes, request.exact)
