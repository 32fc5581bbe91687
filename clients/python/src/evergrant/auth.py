"""`auth()`: an httpx2.Auth that leases a token for each request and reports a token that was refused.

The token goes to the allowed origins alone. After a redirect to another origin httpx2 removes the
header, and a 401 of that origin says nothing about the token. A token that is bound to a key goes
with a proof for each request (RFC 9449).
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from threading import Lock

import httpx2

from evergrant.dpop import LeaseWithProof, NonceStore, is_bound, is_nonce_challenge, set_authorization
from evergrant.models import Lease
from evergrant.origins import AllowedOrigins, origin_of

_MAX_REPORTED = 10_000


class ReportedTokens:
    """The generations that were reported as refused, each once, however many requests failed."""

    def __init__(self) -> None:
        self._reported: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._lock = Lock()

    def contains(self, connection_id: str, generation: int) -> bool:
        with self._lock:
            return (connection_id, generation) in self._reported

    def add(self, connection_id: str, generation: int) -> None:
        with self._lock:
            self._reported[(connection_id, generation)] = None
            if len(self._reported) > _MAX_REPORTED:
                self._reported.popitem(last=False)


class LeaseAuth(httpx2.Auth):
    """For httpx2.Client.

    `take` leases a token; `report` reports a refused lease and returns the newest one; `prove` returns
    a proof for method, URL and nonce with the lease it belongs to, which may be newer than the given.
    """

    def __init__(
        self,
        origins: AllowedOrigins,
        reported: ReportedTokens,
        take: Callable[[], Lease],
        report: Callable[[Lease], Lease],
        prove: Callable[[Lease, str, str, str | None], LeaseWithProof],
    ) -> None:
        self._origins = origins
        self._reported = reported
        self._take = take
        self._report = report
        self._prove = prove
        self._nonces = NonceStore()

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        if not self._origins.allows(request.url):
            yield request
            return
        lease = self._authorize(request, self._take())
        response = yield request
        self._nonces.remember(response)
        if _needs_nonce(lease, request, response):
            lease = self._authorize(request, lease)
            response = yield request
        if not _is_refused(request, response) or is_nonce_challenge(response):
            return
        newer = self._report(lease)
        if newer.generation <= lease.generation or not _can_repeat(request):
            return
        newer = self._authorize(request, newer)
        if _is_refused(request, (yield request)):
            # A new token was refused too: another refresh won't help.
            self._reported.add(newer.connection_id, newer.generation)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        raise RuntimeError("this auth is for httpx2.Client; take AsyncEvergrant's for httpx2.AsyncClient")
        yield request  # makes it a generator, as httpx2 expects

    def _authorize(self, request: httpx2.Request, lease: Lease) -> Lease:
        """Set the headers, with a proof for a bound token. Returns the lease whose token they hold."""
        if not is_bound(lease):
            set_authorization(request, lease)
            return lease
        nonce = self._nonces.get(request.url)
        proven = self._prove(lease, request.method, str(request.url), nonce)
        set_authorization(request, proven.lease, proven.proof)
        return proven.lease


class AsyncLeaseAuth(httpx2.Auth):
    """`LeaseAuth` for httpx2.AsyncClient."""

    def __init__(
        self,
        origins: AllowedOrigins,
        reported: ReportedTokens,
        take: Callable[[], Awaitable[Lease]],
        report: Callable[[Lease], Awaitable[Lease]],
        prove: Callable[[Lease, str, str, str | None], Awaitable[LeaseWithProof]],
    ) -> None:
        self._origins = origins
        self._reported = reported
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
        lease = await self._authorize(request, await self._take())
        response = yield request
        self._nonces.remember(response)
        if _needs_nonce(lease, request, response):
            lease = await self._authorize(request, lease)
            response = yield request
        if not _is_refused(request, response) or is_nonce_challenge(response):
            return
        newer = await self._report(lease)
        if newer.generation <= lease.generation or not _can_repeat(request):
            return
        newer = await self._authorize(request, newer)
        if _is_refused(request, (yield request)):
            self._reported.add(newer.connection_id, newer.generation)

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        raise RuntimeError("this auth is for httpx2.AsyncClient; take Evergrant's for httpx2.Client")
        yield request  # makes it a generator, as httpx2 expects

    async def _authorize(self, request: httpx2.Request, lease: Lease) -> Lease:
        if not is_bound(lease):
            set_authorization(request, lease)
            return lease
        nonce = self._nonces.get(request.url)
        proven = await self._prove(lease, request.method, str(request.url), nonce)
        set_authorization(request, proven.lease, proven.proof)
        return proven.lease


def _needs_nonce(lease: Lease, request: httpx2.Request, response: httpx2.Response) -> bool:
    return is_bound(lease) and is_nonce_challenge(response) and _can_repeat(request)


def _is_refused(request: httpx2.Request, response: httpx2.Response) -> bool:
    """A 401 to a request that carried the token, and not to one that a redirect removed it from."""
    answered = response.request
    carried = answered.headers.get("authorization") == request.headers["authorization"]
    return response.status_code == 401 and carried and origin_of(answered.url) == origin_of(request.url)


def _can_repeat(request: httpx2.Request) -> bool:
    """A streamed body can't be sent again; one in memory can."""
    return isinstance(request.stream, httpx2.ByteStream)
