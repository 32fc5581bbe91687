"""`auth()`: an httpx2.Auth that takes a lease per request and reports a token that was refused.

The token goes to the allowed origins alone. After a redirect to another origin httpx2 takes the
header off, and what that origin answers says nothing about the token. A token that is bound to a key
goes with a proof for each request (RFC 9449).
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass
from threading import Lock

import httpx2

from evergrant.errors import BadRequest
from evergrant.models import Lease
from evergrant.proving import LeaseWithProof, NonceStore, is_bound, is_nonce_challenge, set_authorization
from evergrant.target import is_loopback

_Origin = tuple[str, str, int]
_PORTS = {"http": 80, "https": 443}
_MOST_REPORTS = 10_000


@dataclass(frozen=True, slots=True)
class AllowedOrigins:
    """Where a token may be sent: scheme, host and port (RFC 6454 section 4)."""

    allowed: frozenset[_Origin]

    @classmethod
    def of(cls, origins: str | Iterable[str]) -> "AllowedOrigins":
        """Raises BadRequest for none, for what is no origin, and for plain http to another machine."""
        given = (origins,) if isinstance(origins, str) else tuple(origins)
        if not given:
            raise BadRequest("no origin is allowed", code="origin_invalid", repair="Name the API's origin.")
        return cls(frozenset(_checked(origin) for origin in given))

    def allows(self, url: httpx2.URL) -> bool:
        return _origin(url) in self.allowed


def _checked(origin: str) -> _Origin:
    try:
        url = httpx2.URL(origin)
    except (httpx2.InvalidURL, TypeError):
        url = httpx2.URL("")
    rest = url.path.strip("/") or url.query or url.fragment or url.userinfo
    secure = url.scheme == "https" or (url.scheme == "http" and is_loopback(url.host))
    if rest or not url.host or not secure:
        raise BadRequest(
            "an origin is https://host or https://host:port, without a path",
            code="origin_invalid",
            repair="Name the API's origin; plain http is for this machine only.",
        )
    return _origin(url)


def _origin(url: httpx2.URL) -> _Origin:
    return (url.scheme, url.host, url.port or _PORTS.get(url.scheme, 0))


class ReportedTokens:
    """Which grants were reported as refused: each one once, however many requests it failed."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._lock = Lock()

    def contains(self, connection_id: str, generation: int) -> bool:
        with self._lock:
            return (connection_id, generation) in self._made

    def add(self, connection_id: str, generation: int) -> None:
        with self._lock:
            self._made[(connection_id, generation)] = None
            if len(self._made) > _MOST_REPORTS:
                self._made.popitem(last=False)


class LeaseAuth(httpx2.Auth):
    """For httpx2.Client. `take` gives a lease; `report` has a refused one replaced, and returns that;
    `prove` gives the proof that goes with a bound one."""

    def __init__(
        self,
        origins: AllowedOrigins,
        reports: ReportedTokens,
        take: Callable[[], Lease],
        report: Callable[[Lease], Lease],
        prove: Callable[[Lease, str, str, str | None], LeaseWithProof],
    ) -> None:
        self._origins = origins
        self._reports = reports
        self._take = take
        self._report = report
        self._prove = prove
        self._nonces = NonceStore()

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        if not self._origins.allows(request.url):
            yield request
            return
        lease = self._dress(request, self._take())
        response = yield request
        self._nonces.remember(response)
        if is_bound(lease) and is_nonce_challenge(response) and _can_repeat(request):
            lease = self._dress(request, lease)
            response = yield request
        if not _refused(request, response) or is_nonce_challenge(response):
            return
        newer = self._report(lease)
        if newer.generation <= lease.generation or not _can_repeat(request):
            return
        newer = self._dress(request, newer)
        if _refused(request, (yield request)):
            # a new token was refused too: another won't help
            self._reports.add(newer.connection_id, newer.generation)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        raise RuntimeError("this auth is for httpx2.Client; take AsyncEvergrant's for httpx2.AsyncClient")
        yield request  # makes it a generator, as httpx2 expects

    def _dress(self, request: httpx2.Request, lease: Lease) -> Lease:
        """Put the token on, with a proof where it is bound. The lease that it is from, which may be newer."""
        if not is_bound(lease):
            set_authorization(request, lease)
            return lease
        nonce = self._nonces.get(request.url)
        proven = self._prove(lease, request.method, str(request.url), nonce)
        set_authorization(request, proven.lease, proven.proof)
        return proven.lease


class AsyncLeaseAuth(httpx2.Auth):
    """For httpx2.AsyncClient: `LeaseAuth`, awaited."""

    def __init__(
        self,
        origins: AllowedOrigins,
        reports: ReportedTokens,
        take: Callable[[], Awaitable[Lease]],
        report: Callable[[Lease], Awaitable[Lease]],
        prove: Callable[[Lease, str, str, str | None], Awaitable[LeaseWithProof]],
    ) -> None:
        self._origins = origins
        self._reports = reports
        self._take = take
        self._report = report
        self._prove = prove
        self._nonces = NonceStore()

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        if not self._origins.allows(request.url):
            yield request
            return
        lease = await self._dress(request, await self._take())
        response = yield request
        self._nonces.remember(response)
        if is_bound(lease) and is_nonce_challenge(response) and _can_repeat(request):
            lease = await self._dress(request, lease)
            response = yield request
        if not _refused(request, response) or is_nonce_challenge(response):
            return
        newer = await self._report(lease)
        if newer.generation <= lease.generation or not _can_repeat(request):
            return
        newer = await self._dress(request, newer)
        if _refused(request, (yield request)):
            # a new token was refused too: another won't help
            self._reports.add(newer.connection_id, newer.generation)

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        raise RuntimeError("this auth is for httpx2.AsyncClient; take Evergrant's for httpx2.Client")
        yield request  # makes it a generator, as httpx2 expects

    async def _dress(self, request: httpx2.Request, lease: Lease) -> Lease:
        """Put the token on, with a proof where it is bound. The lease that it is from, which may be newer."""
        if not is_bound(lease):
            set_authorization(request, lease)
            return lease
        nonce = self._nonces.get(request.url)
        proven = await self._prove(lease, request.method, str(request.url), nonce)
        set_authorization(request, proven.lease, proven.proof)
        return proven.lease


def _refused(request: httpx2.Request, response: httpx2.Response) -> bool:
    """A 401 to a request that carried the token, not to one that a redirect took it from."""
    answered = response.request
    carried = answered.headers.get("authorization") == request.headers["authorization"]
    return response.status_code == 401 and carried and _origin(answered.url) == _origin(request.url)


def _can_repeat(request: httpx2.Request) -> bool:
    """A body that is streamed is gone; one in memory can be sent again."""
    return isinstance(request.stream, httpx2.ByteStream)
