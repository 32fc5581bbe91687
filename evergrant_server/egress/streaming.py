"""The streaming transport: the same guard as `transport`, bodies as they come, and connections that are kept.

It is for requests that an app makes through the gateway: the caller reads the body, so there is no limit of
its size, and only silence has a time limit. Nothing is sent twice.
"""

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpcore2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress.policy import EgressPolicy
from evergrant_server.egress.transport import GuardedBackend, default_tls_context

RawHeaders = list[tuple[bytes, bytes]]

_CONNECT_TIMEOUT_S = 5.0
_KEEP_S = 15.0  # less than servers keep an idle connection: a stale one would lose a request
_MOST_IDLE = 16  # kept for one origin: each request looks at all of them
_MOST_ORIGINS = 1000  # with a pool of their own


class UpstreamClosed(Failure):
    """The provider ended the connection, or was silent for too long, after its response had begun."""


@dataclass(frozen=True)
class _Origin:
    """An origin that the policy allows, and the connections that are kept to it."""

    url: httpcore2.URL
    host_header: bytes
    pool: httpcore2.AsyncConnectionPool


@dataclass(frozen=True)
class StreamedResponse:
    """A response whose body is read while it arrives. `chunks` raises UpstreamClosed."""

    status: int
    headers: RawHeaders
    chunks: AsyncIterator[bytes]


class StreamingTransport:
    """Sends requests to checked addresses and streams both bodies. One per process.

    Connections are kept per origin; redirects are not followed; the environment's proxies are not read. A
    response's header section has at most 100 KiB (httpcore).
    """

    def __init__(self, policy: EgressPolicy, *, silence_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._limits = {
            "connect": _CONNECT_TIMEOUT_S,
            "read": silence_s,
            "write": silence_s,
            "pool": silence_s,
        }
        self._tls = tls or default_tls_context()
        self._origins: dict[str, _Origin] = {}
        self._shared = self._new_pool()  # of the origins beyond so many

    @asynccontextmanager
    async def send(
        self,
        method: str,
        origin: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: AsyncIterable[bytes] | None = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Send a request; leaving the block gives the connection back, or closes it if more would come.

        `target` goes out as it is. Raises Failure EGRESS_REFUSED, and PROVIDER_UNREACHABLE before the
        response has begun.
        """
        there = self._origins.get(origin) or self._origin(origin)
        url = there.url
        request = httpcore2.Request(
            method=method,
            url=httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=target),
            headers=[(b"Host", there.host_header), *headers],
            content=_no_body() if body is None else body,
            extensions={"timeout": self._limits},
        )
        try:
            answer = await there.pool.handle_async_request(request)
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise Failure(ErrorCode.PROVIDER_UNREACHABLE, _why(error), retry_after=1.0) from None
        try:
            yield StreamedResponse(answer.status, list(answer.headers), _chunks(answer))
        finally:
            await answer.aclose()

    def _origin(self, origin: str) -> _Origin:
        """Raises Failure EGRESS_REFUSED. The addresses of its name are checked at each connection."""
        self._policy.check_url(origin)
        url = httpcore2.URL(origin)
        if len(self._origins) >= _MOST_ORIGINS:
            return _Origin(url, _host_header(url), self._shared)
        self._origins[origin] = _Origin(url, _host_header(url), self._new_pool())
        return self._origins[origin]

    def _new_pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._tls,
            max_connections=None,
            max_keepalive_connections=_MOST_IDLE,
            keepalive_expiry=_KEEP_S,
            network_backend=GuardedBackend(self._policy),
        )

    async def aclose(self) -> None:
        for pool in (self._shared, *(it.pool for it in self._origins.values())):
            await pool.aclose()


async def _chunks(answer: httpcore2.Response) -> AsyncIterator[bytes]:
    assert isinstance(answer.stream, AsyncIterable)
    try:
        async for chunk in answer.stream:
            yield chunk
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise UpstreamClosed(ErrorCode.PROVIDER_UNREACHABLE, _why(error)) from None


async def _no_body() -> AsyncIterator[bytes]:
    return
    yield b""


def _host_header(url: httpcore2.URL) -> bytes:
    usual = {b"https": 443, b"http": 80}[url.scheme]
    return url.host if url.port in (None, usual) else b"%b:%d" % (url.host, url.port)


def _why(error: Exception) -> str:
    if isinstance(error, httpcore2.TimeoutException):
        return "The provider's API did not answer in time."
    if isinstance(error, httpcore2.ProtocolError):
        return "The provider's API broke the protocol, or closed the connection."
    return "The provider's API can't be reached, or the connection broke."
