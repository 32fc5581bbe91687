"""Limits of all requests but leases: of an app's rate, of its tokens, and of a client address's guesses.

Each API process counts for itself, or all of them together in Redis (`EVERGRANT_REDIS_URL`).
"""

import math
from ipaddress import ip_network
from time import monotonic
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from evergrant_server.api.limits.leases import Counted, Gcra, RateLimited, note_counted
from evergrant_server.core.access import App
from evergrant_server.core.ids import TokenFamilyId
from evergrant_server.policy.networks import caller_address, parse_address
from evergrant_server.settings import Settings

if TYPE_CHECKING:
    from evergrant_server.api.limits.shared import SharedCounts

_MOST_BLOCKED = 50_000
_REGISTRATIONS_OF_ADDRESS = 30  # of clients that register themselves, in a minute
_LOGINS_OF_ADDRESS = 60  # that are begun at an issuer, in a minute


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
        self._blocked: dict[str, float] = {}  # until when an address is refused

    async def count_request(self, scope: Scope, app: App) -> None:
        """Count a request of an app that isn't a lease. Raises RateLimited."""
        await self._require(scope, "requests", app.id, self._requests)

    async def count_token(self, scope: Scope, app: App) -> None:
        """Count a token that an app has proven its identity for. Raises RateLimited."""
        await self._require(scope, "tokens", app.id, self._tokens)

    async def count_family(self, scope: Scope, id: TokenFamilyId) -> None:
        """Count a refresh of what a subject authorized: as an app's tokens, but no client of an app makes
        another one wait. Raises RateLimited."""
        await self._require(scope, "tokens", id, self._tokens)

    async def _require(self, scope: Scope, policy: str, id: str, quota: int) -> None:
        if not quota:
            return
        counted = await self._count(policy, id, quota)
        note_counted(scope, counted)
        if not counted.allowed:
            whose = "authorization" if id.startswith("fam_") else "app"
            why = f"The limit of {quota} {policy} in a minute for this {whose} is reached."
            raise RateLimited(policy, why, counted.seconds)

    async def count_registration(self, scope: Scope) -> None:
        """Count a client that registers itself, by its address: it writes no row, so a flood from many fills
        nothing and makes no one else wait. Raises RateLimited."""
        await self._require_rate(scope, "registrations", self._address(scope), _REGISTRATIONS_OF_ADDRESS)

    async def count_login(self, scope: Scope) -> None:
        """Count a browser that is sent to an issuer, by its address: each time a row is written. Raises
        RateLimited."""
        await self._require_rate(scope, "logins", self._address(scope), _LOGINS_OF_ADDRESS)

    async def _require_rate(self, scope: Scope, policy: str, key: str, quota: int) -> None:
        counted = await self._count(policy, key, quota)
        note_counted(scope, counted)
        if not counted.allowed:
            why = f"The limit of {quota} {policy} in a minute is reached."
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
            if len(self._blocked) >= _MOST_BLOCKED:
                self._blocked.clear()
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
    from evergrant_server.api.limits.shared import SharedCounts

    return SharedCounts(settings)
