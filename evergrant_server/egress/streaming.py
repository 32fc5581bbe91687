"""The streaming transport: the same guard as `transport`, bodies as they come, and connections that are kept.

It is for requests that an app makes through the gateway: the caller reads the body, so there is no limit of
its size, and only silence has a time limit. Nothing is sent twice. HTTP/1.1 on asyncio's protocols, read by
llhttp without any leniency (ADR 0087).
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpcore2

from evergrant_server.core.bounded import Bounded
from evergrant_server.egress.connection import RawHeaders, UpstreamConnection, unreachable
from evergrant_server.egress.policy import EgressPolicy
from evergrant_server.egress.transport import GuardedBackend, default_tls_context
from evergrant_server.egress.unreachable import connection_problem

_CONNECT_TIMEOUT_S = 5.0  # for the name, an address and TLS
_MOST_IDLE = 16  # kept for one origin
_MOST_ORIGINS = 1000  # whose check is kept
_HEAD = re.compile(
    rb"[A-Z]+ [\x21-\x7e]+ HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*\r\n)+\r\n"
)  # RFC 9112 sections 3 and 5


@dataclass(frozen=True)
class StreamedResponse:
    """A response whose body is read while it arrives. `chunks` raises UpstreamClosed."""

    status: int
    headers: RawHeaders
    chunks: AsyncIterator[bytes]


class StreamingTransport:
    """Sends requests to checked addresses and streams both bodies. One per process.

    Connections are kept per origin; redirects are not followed; the environment's proxies are not read. A
    response's header section has at most 100 KiB.
    """

    def __init__(self, policy: EgressPolicy, *, silence_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._silence_s = silence_s
        self._tls = tls or default_tls_context(policy.ca_file)
        self._tls.set_alpn_protocols(["http/1.1"])
        self._backend = GuardedBackend(policy)
        self._policy = policy
        self._origins = Bounded[str, _Origin](_MOST_ORIGINS)

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

        `target` goes out as it is; `headers` say how the body is framed. Raises Failure EGRESS_REFUSED, and
        PROVIDER_UNREACHABLE before the response has begun.
        """
        allowed = self._origins.get(origin) or self._allowed(origin)
        head = _head(method, target, allowed, headers)
        connection = allowed.kept() or await self._connected(allowed)
        try:
            await connection.request(method, head, body)
            await connection.response_head()
            yield StreamedResponse(connection.status, connection.headers, connection.body())
        finally:
            allowed.give_back(connection)

    def _allowed(self, url: str) -> "_Origin":
        """Raises Failure EGRESS_REFUSED. The addresses of its name are checked at each connection."""
        self._policy.check_url(url)
        parsed = httpcore2.URL(url)
        usual = {b"https": 443, b"http": 80}[parsed.scheme]
        port = parsed.port or usual
        host = parsed.host.decode().strip("[]")
        shown = f"[{host}]" if ":" in host else host
        header = shown if port == usual else f"{shown}:{port}"
        origin = _Origin(host, port, parsed.scheme == b"https", header.encode())
        self._origins[url] = origin
        return origin

    async def _connected(self, origin: "_Origin") -> UpstreamConnection:
        """A new connection, to the first checked address that accepts one.

        Raises Failure EGRESS_REFUSED, PROVIDER_UNREACHABLE.
        """
        host, port = origin.host, origin.port
        tls, name = (self._tls, host) if origin.tls else (None, None)
        loop = asyncio.get_running_loop()
        problem: Exception = OSError("no address")
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                for address in await self._backend.checked_addresses(host, port):
                    try:
                        _, connection = await loop.create_connection(
                            self._new_connection, address, port, ssl=tls, server_hostname=name
                        )
                        return connection
                    except OSError as error:
                        problem = error
        except (TimeoutError, httpcore2.ConnectError) as error:  # the second: the name doesn't resolve
            problem = error
        shown = origin.host_header.decode()
        raise unreachable(f"The provider's API has no connection: {connection_problem(shown, problem)}.")

    def _new_connection(self) -> UpstreamConnection:
        return UpstreamConnection(self._silence_s)

    async def aclose(self) -> None:
        for origin in self._origins.values():
            origin.close()


@dataclass(eq=False)
class _Origin:
    """An origin that the policy allows, and the connections that are kept to it."""

    host: str
    port: int
    tls: bool
    host_header: bytes
    idle: "list[UpstreamConnection]" = field(default_factory=list)

    def kept(self) -> "UpstreamConnection | None":
        """The connection that was given back last, unless something has come on it since."""
        while self.idle:
            connection = self.idle.pop()
            if connection.taken():
                return connection
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        if not connection.is_reusable or len(self.idle) >= _MOST_IDLE:
            connection.close()
            return
        self.idle.append(connection)
        connection.expire(self.idle)

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()


def _head(method: str, target: bytes, origin: _Origin, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Raises Failure PROVIDER_UNREACHABLE for what no server reads as one request."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    first = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method.encode(), target, origin.host_header)
    head = b"".join((first, *lines, b"\r\n"))
    if not _HEAD.fullmatch(head) or head.count(b"\n") != len(headers) + 3:  # each is one line
        raise unreachable("The request has characters that no header can hold.")
    return head
