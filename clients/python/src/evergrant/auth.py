"""`auth()`: an httpx2.Auth that leases a token for each request and reports a token that was refused.

The token goes to the allowed origins alone. After a redirect to another origin httpx2 removes the
header, and a 401 of that origin says nothing about the token. A token that is bound to a key goes
with a proof for each request (RFC 9449).
"""

import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator, Hashable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx2

from evergrant.errors import ProviderUnavailable
from evergrant.lease import Lease
from evergrant.lease_cache import LeaseCache
from evergrant.origins import Origin, origin_of

if TYPE_CHECKING:
    import httpx

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Flow = Generator[httpx2.Request | Callable[[], Any], Any, Value]

_MAX_NONCES = 1_000
_MAX_PROOF_ATTEMPTS = 3
_USE_NONCE = re.compile(r"\buse_dpop_nonce\b")


class NewestEntries(Generic[Key, Value]):
    """A map that forgets its oldest entry when it has more than `limit`. Threads may share one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            return self._entries.get(key)

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._entries[key] = value
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)


ReportedTokens = NewestEntries[tuple[str, int], bool]  # connection and generation, each reported once


class _AuthFlow(httpx2.Auth):
    """What both clients' `auth` do for a request.

    `take` leases a token, `step_up` one with the scopes of a challenge, `report` reports a refused one,
    `prove` makes a proof of the newest grant.
    """

    def __init__(
        self,
        origins: frozenset[Origin],
        cache: LeaseCache,
        reported: ReportedTokens,
        *,
        take: Callable[[], Any],
        step_up: Callable[[str], Any],
        report: Callable[[str, int], Any],
        prove: Callable[..., Any],
    ) -> None:
        self._origins = origins
        self._cache = cache
        self._reported = reported
        self._take = take
        self._step_up = step_up
        self._report = report
        self._prove = prove
        self._nonces = NewestEntries[Origin, str](_MAX_NONCES)

    def flow(self, request: httpx2.Request) -> Flow[None]:
        """Yields requests to send, and calls of the client to make; receives the response or result."""
        if origin_of(request.url) not in self._origins:
            yield request
            return
        lease = yield from self._authorize(request, (yield self._take))
        response = yield request
        if (nonce := response.headers.get("dpop-nonce")) is not None:  # RFC 9449 section 8.2
            self._nonces.put(origin_of(response.request.url), nonce)
        if _is_bound(lease) and _is_nonce_challenge(response) and _can_repeat(request):
            lease = yield from self._authorize(request, lease)
            response = yield request
        if _lacks_scope(request, response):
            yield from self._widen(request, lease, response.headers["www-authenticate"])
            return
        if not _is_refused(request, response) or _is_nonce_challenge(response):
            return
        self._cache.invalidate(lease.connection_id, lease.generation)
        if not self._reported.get((lease.connection_id, lease.generation)):
            yield partial(self._report, lease.connection_id, lease.generation)
        newer = yield self._take
        if newer.generation <= lease.generation or not _can_repeat(request):
            return
        newer = yield from self._authorize(request, newer)
        if _is_refused(request, (yield request)):
            # A new token was refused too: another refresh won't help.
            self._reported.put((newer.connection_id, newer.generation), True)

    def _widen(self, request: httpx2.Request, lease: Lease, challenge: str) -> Flow[None]:
        """Send the request once more if there is a newer grant, with the scopes that the 403 demands.

        Raises ReconnectNeeded, with the link of a consent to these and the connection's own scopes.
        """
        wider = yield partial(self._step_up, challenge)
        if wider.generation > lease.generation and _can_repeat(request):
            yield from self._authorize(request, wider)
            yield request

    def _authorize(self, request: httpx2.Request, lease: Lease) -> Flow[Lease]:
        """Set the headers, with a proof for a bound token. Returns the lease whose token they hold."""
        for _ in range(_MAX_PROOF_ATTEMPTS):
            scheme = "Bearer" if lease.token_type.lower() == "bearer" else lease.token_type
            request.headers["authorization"] = f"{scheme} {lease.access_token}"
            if not _is_bound(lease):
                return lease
            nonce, url = self._nonces.get(origin_of(request.url)), str(request.url)
            proof = yield partial(self._prove, lease.connection_id, request.method, url, nonce=nonce)
            if proof.generation == lease.generation:
                request.headers["dpop"] = proof.proof
                return lease
            self._cache.invalidate(lease.connection_id, lease.generation)  # it was refreshed meanwhile
            lease = yield self._take
        raise ProviderUnavailable(
            f"{lease.connection_id} keeps changing", code="refresh_pending", retry_after=1.0
        )


class LeaseAuth(_AuthFlow):
    """For httpx2.Client."""

    def for_httpx(self) -> "httpx.Auth":
        """The same for httpx.Client."""
        from evergrant.frameworks.httpx import HttpxAuth

        return HttpxAuth(self)

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        flow, answer = self.flow(request), None
        try:
            while True:
                step = flow.send(answer)
                answer = step() if callable(step) else (yield step)
        except StopIteration:
            return

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        raise RuntimeError("this auth is for httpx2.Client; take AsyncEvergrant's for httpx2.AsyncClient")
        yield request  # makes it a generator, as httpx2 expects


class AsyncLeaseAuth(_AuthFlow):
    """For httpx2.AsyncClient."""

    def for_httpx(self) -> "httpx.Auth":
        """The same for httpx.AsyncClient."""
        from evergrant.frameworks.httpx import HttpxAuth

        return HttpxAuth(self)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        flow, answer = self.flow(request), None
        try:
            while True:
                step = flow.send(answer)
                answer = await step() if callable(step) else (yield step)
        except StopIteration:
            return

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        raise RuntimeError("this auth is for httpx2.AsyncClient; take Evergrant's for httpx2.Client")
        yield request  # makes it a generator, as httpx2 expects


def _is_bound(lease: Lease) -> bool:
    """Whether the token is bound to a key, so that each request needs a proof."""
    return lease.token_type.lower() == "dpop"


def _is_nonce_challenge(response: httpx2.Response) -> bool:
    """Whether a 401 only asks for a nonce (RFC 9449 section 9). It refuses no token."""
    asks = _USE_NONCE.search(response.headers.get("www-authenticate", "")) is not None
    return response.status_code == 401 and asks and "dpop-nonce" in response.headers


def _lacks_scope(request: httpx2.Request, response: httpx2.Response) -> bool:
    """A 403 for lack of a scope (RFC 6750 section 3.1). Which one, Evergrant parses."""
    challenged = "insufficient_scope" in response.headers.get("www-authenticate", "")
    return response.status_code == 403 and challenged and _carried_token(request, response)


def _is_refused(request: httpx2.Request, response: httpx2.Response) -> bool:
    """A 401 to a request that carried the token, and not to one that a redirect removed it from."""
    return response.status_code == 401 and _carried_token(request, response)


def _carried_token(request: httpx2.Request, response: httpx2.Response) -> bool:
    answered = response.request
    carried = answered.headers.get("authorization") == request.headers["authorization"]
    return carried and origin_of(answered.url) == origin_of(request.url)


def _can_repeat(request: httpx2.Request) -> bool:
    """A streamed body can't be sent again; one in memory can."""
    try:
        _ = request.content
    except RuntimeError:  # RequestNotRead, of httpx2 and of httpx
        return False
    return True
