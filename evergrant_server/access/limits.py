"""How many requests are answered: of leases, of an app's other requests and tokens, of an address's guesses.

Each API process counts for itself; with `EVERGRANT_REDIS_URL` all of them count together what isn't a lease.
A response names the limits that were counted in `RateLimit-Policy` and `RateLimit`
(draft-ietf-httpapi-ratelimit-headers-11); a refusal is a problem of its type `quota-exceeded`. Doesn't own
the order in which leases are committed (audit), nor the limits of providers (activities).
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Scope

from evergrant_server.core.access import App
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant, TokenFamilyId
from evergrant_server.policy.networks import caller_address, parse_address
from evergrant_server.settings import Settings

if TYPE_CHECKING:
    from evergrant_server.access.redis_limits import SharedCounts

WINDOW_S = 60
OPEN_REQUESTS = "open-requests"
_COUNTED = "evergrant.limits"  # in the ASGI scope
_MOST_KEYS = 50_000
_OPEN_RETRY_S = 1.0
_MOST_BLOCKED = 50_000
_REGISTRATIONS_OF_ADDRESS = 30  # of clients that register themselves, in a minute
_LOGINS_OF_ADDRESS = 60  # that are begun at an issuer, in a minute


class Counted(NamedTuple):
    """A limit as a request met it: what is left, and the seconds until more is, or until all is again."""

    policy: str
    quota: int
    remaining: int
    seconds: int
    allowed: bool = True


class RateLimited(Failure):
    """The failure RATE_LIMITED of one policy."""

    def __init__(self, policy: str, why: str, seconds: float) -> None:
        super().__init__(ErrorCode.RATE_LIMITED, why, retry_after=seconds, policy=policy)


class Gcra:
    """The generic cell rate algorithm: `quota` at once, and then one in each `WINDOW_S / quota` seconds."""

    def __init__(self) -> None:
        # when the key's quota is whole again; bounded, however many addresses come
        self._whole_at = Bounded[Hashable, float](_MOST_KEYS)

    def take(self, policy: str, key: Hashable, quota: int) -> Counted:
        """Count a request of this key, unless it is refused."""
        now, step = monotonic(), WINDOW_S / quota
        whole_at = max(now, self._whole_at.get(key, now)) + step
        late = whole_at - now - WINDOW_S
        if late > 1e-9:
            return Counted(policy, quota, 0, max(math.ceil(late), 1), allowed=False)
        self._whole_at[key] = whole_at
        remaining = int((WINDOW_S - (whole_at - now)) / step + 1e-6)
        seconds = whole_at - now if remaining else step
        return Counted(policy, quota, remaining, max(math.ceil(seconds), 1))


class LeaseLimits:
    """The limits of the settings, and the app's own in place of `lease_limit_per_app`.

    Each of a host's API processes enforces its part of a rate.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = settings.lease_limit_per_app
        self._tenant = settings.lease_limit_per_tenant
        self._integration = settings.lease_limit_per_integration
        self._most_open = settings.open_leases_per_app
        self._processes = settings.api_workers
        self._gcra = Gcra()
        self._open: Counter[AppId] = Counter()

    @contextmanager
    def admit(self, scope: Scope, app: App) -> Iterator[None]:
        """Count a request of an app, which is open until the block ends. Raises RateLimited."""
        if not self.open(app.id):
            scope[_COUNTED] = [Counted(OPEN_REQUESTS, self._most_open, 0, math.ceil(_OPEN_RETRY_S))]
            why = f"The app has {self._most_open} lease requests open already."
            raise RateLimited(OPEN_REQUESTS, why, _OPEN_RETRY_S)
        try:
            if quota := app.lease_limit or self._app:
                self._take(scope, "app", app.id, quota)
            if self._tenant:
                self._take(scope, "tenant", app.tenant, self._tenant)
            yield
        finally:
            self.close(app.id)

    def open(self, app_id: AppId) -> bool:
        """Count a request as open; False when the app has as many as it may. `close` ends it."""
        if self._open[app_id] >= self._most_open:
            return False
        self._open[app_id] += 1
        return True

    def close(self, app_id: AppId) -> None:
        self._open[app_id] -= 1
        if not self._open[app_id]:
            del self._open[app_id]

    def has_quota(self, app: App) -> bool:
        """Whether leases of this app are counted by the minute."""
        return bool(app.lease_limit or self._app or self._tenant or self._integration)

    def count_integration(self, scope: Scope, tenant: Tenant, integration: str) -> None:
        """Count a lease of an integration, once for a request that is judged again. Raises RateLimited."""
        counted: list[Counted] = scope.get(_COUNTED, [])
        if self._integration and not any(limit.policy == "integration" for limit in counted):
            self._take(scope, "integration", (tenant, integration), self._integration)

    def _take(self, scope: Scope, policy: str, key: Hashable, quota: int) -> None:
        counted = self._gcra.take(policy, (policy, key), math.ceil(quota / self._processes))
        note_counted(scope, counted._replace(quota=quota))
        if not counted.allowed:
            why = f"The limit of {quota} leases in a minute for this {policy} is reached."
            raise RateLimited(policy, why, counted.seconds)


class RequestLimits:
    """The limits of one API process. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._requests = settings.request_limit_per_app
        self._tokens = settings.token_limit_per_app
        self._guesses = settings.guess_limit_per_address
        self._processes = settings.api_workers
        self._proxies = settings.trusted_proxies
        self._gcra = Gcra()
        self._shared = _shared_counts(settings)
        self._blocked = Bounded[str, float](_MOST_BLOCKED)  # until when an address is refused

    async def count_request(self, scope: Scope, app: App) -> None:
        """Count a request of an app that isn't a lease. Raises RateLimited."""
        await self._require(scope, "requests", app.id, self._requests, whose="app")

    async def count_token(self, scope: Scope, app: App) -> None:
        """Count a token that an app has proven its identity for. Raises RateLimited."""
        await self._require(scope, "tokens", app.id, self._tokens, whose="app")

    async def count_family(self, scope: Scope, id: TokenFamilyId) -> None:
        """Count a refresh of what a subject authorized: as an app's tokens, but no client of an app makes
        another one wait. Raises RateLimited."""
        await self._require(scope, "tokens", id, self._tokens, whose="authorization")

    async def count_registration(self, scope: Scope) -> None:
        """Count a client that registers itself, by its address: it writes no row, so a flood from many fills
        nothing and makes no one else wait. Raises RateLimited."""
        await self._require(scope, "registrations", self._address(scope), _REGISTRATIONS_OF_ADDRESS)

    async def count_login(self, scope: Scope) -> None:
        """Count a browser that is sent to an issuer, by its address: each time a row is written. Raises
        RateLimited."""
        await self._require(scope, "logins", self._address(scope), _LOGINS_OF_ADDRESS)

    async def count_device_login(self, scope: Scope) -> None:
        """Count a client that asks for a code on a device, by its address: each time a row is written. Raises
        RateLimited."""
        await self._require(scope, "device logins", self._address(scope), _LOGINS_OF_ADDRESS)

    async def _require(self, scope: Scope, policy: str, key: str, quota: int, *, whose: str = "") -> None:
        if not quota:
            return
        counted = await self._count(policy, key, quota)
        note_counted(scope, counted)
        if not counted.allowed:
            named = f" for this {whose}" if whose else ""
            why = f"The limit of {quota} {policy} in a minute{named} is reached."
            raise RateLimited(policy, why, counted.seconds)

    def _address(self, scope: Scope) -> str:
        """Where a request comes from, as a limit's key; one for all whose address isn't known."""
        peer = scope["client"][0] if scope.get("client") else None
        forwarded = Headers(scope=scope).getlist("x-forwarded-for")
        return _source(caller_address(peer, forwarded, self._proxies) or "")

    async def count_guess(self, address: str) -> None:
        """Count a refused request; beyond the limit the address is refused for a while."""
        if not self._guesses:
            return
        source = _source(address)
        counted = await self._count("guesses", source, self._guesses)
        if not counted.allowed:
            self._blocked[source] = monotonic() + counted.seconds

    def require_no_guesser(self, scope: Scope, address: str) -> None:
        """Raise RateLimited while this address is refused."""
        source = _source(address)
        until = self._blocked.get(source)
        if until is None:
            return
        if until <= monotonic():
            del self._blocked[source]
            return
        seconds = math.ceil(until - monotonic())
        note_counted(scope, Counted("guesses", self._guesses, 0, seconds, allowed=False))
        raise RateLimited("guesses", "Too many requests from this address were refused.", seconds)

    async def _count(self, policy: str, key: str, quota: int) -> Counted:
        shared = None if self._shared is None else await self._shared.count(policy, key, quota)
        if shared is not None:
            return shared
        part = math.ceil(quota / self._processes)
        return self._gcra.take(policy, (policy, key), part)._replace(quota=quota)

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.close()


def _source(address: str) -> str:
    """The address; of IPv6 the network of 64 bits, which one host may have whole (RFC 4291 section 2.5.4)."""
    try:
        parsed = parse_address(address)
    except ValueError:
        return address
    return str(parsed if parsed.version == 4 else ip_network((parsed, 64), strict=False))


def _shared_counts(settings: Settings) -> "SharedCounts | None":
    """The counts in Redis. Its client is imported only where there is one: a tenth of an API's start."""
    if not settings.redis_url:
        return None
    from evergrant_server.access.redis_limits import SharedCounts

    return SharedCounts(settings)


_WAITING = "evergrant.waiting"


def note_waiting(scope: Scope) -> None:
    """Have the response count as no guess: a client that waits for its person is told so by an error."""
    scope[_WAITING] = True


def is_waiting(scope: Scope) -> bool:
    return _WAITING in scope


def note_counted(scope: Scope, counted: Counted) -> None:
    """Have the response name this limit."""
    scope.setdefault(_COUNTED, []).append(counted)


def add_limit_headers(scope: Scope, headers: MutableHeaders) -> None:
    """Name the limits that the request met."""
    counted: list[Counted] | None = scope.get(_COUNTED)
    if counted:
        headers["RateLimit-Policy"] = ", ".join(
            f'"{limit.policy}";q={limit.quota};'
            + ('qu="concurrent-requests"' if limit.policy == OPEN_REQUESTS else f"w={WINDOW_S}")
            for limit in counted
        )
        headers["RateLimit"] = ", ".join(
            f'"{limit.policy}";r={limit.remaining};t={limit.seconds}' for limit in counted
        )
