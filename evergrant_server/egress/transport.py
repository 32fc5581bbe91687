"""The guarded transport: egress policy, pinned address, one time limit and one size limit.

It resolves a host, checks every address, and connects to the one that was checked.
"""

import socket
import ssl
import zlib
from collections.abc import AsyncIterable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import anyio
import httpcore2
import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress.policy import EgressPolicy, address_refusal
from evergrant_server.egress.unreachable import DOES_NOT_RESOLVE

_ERROR_TYPES: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
    (httpcore2.ConnectTimeout, httpx2.ConnectTimeout),
    (httpcore2.ReadTimeout, httpx2.ReadTimeout),
    (httpcore2.WriteTimeout, httpx2.WriteTimeout),
    (httpcore2.PoolTimeout, httpx2.PoolTimeout),
    (httpcore2.ConnectError, httpx2.ConnectError),
    (httpcore2.ReadError, httpx2.ReadError),
    (httpcore2.WriteError, httpx2.WriteError),
    (httpcore2.ProtocolError, httpx2.RemoteProtocolError),
)
_REQUEST_STARTED = frozenset({"http11.send_request_headers.started", "http2.send_request_headers.started"})
_REQUEST_WRITTEN = frozenset({"http11.send_request_body.complete", "http2.send_request_body.complete"})

BODY_LIMIT = 1024 * 1024  # bytes, before and after decompression

BeforeSend = Callable[[], Callable[[], None] | None]


class SendObserver:
    """Observes the moment at which a request's first byte is written.

    The transport calls `before_send` just before, with the connection open, and calls what that
    returns after the last byte. An exception from `before_send` stops the request, with Failure
    PROVIDER_UNREACHABLE unless it is a Failure. `sent` is False only when it is certain that no byte left.
    """

    def __init__(self, before_send: BeforeSend | None = None) -> None:
        self._before_send = before_send
        self._after: Callable[[], None] | None = None
        self.sent = False

    async def trace(self, event: str, info: object) -> None:
        """httpcore2's trace extension."""
        if event in _REQUEST_STARTED:
            if self._before_send is not None:
                self._after = _checked(self._before_send)
            self.sent = True
        elif event in _REQUEST_WRITTEN and self._after is not None:
            self._after()


def _checked(before_send: BeforeSend) -> Callable[[], None] | None:
    try:
        return before_send()
    except Failure:
        raise
    except Exception as error:
        detail = "the request was stopped before sending"
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, detail) from error


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends one request if the policy allows, and reads the whole response within the limits.

    The response is complete and decoded. Raises Failure EGRESS_REFUSED (the policy),
    Failure REPLY_UNREADABLE (too large, or in an unknown encoding), and httpx2's
    transport errors (`ReadTimeout` when the whole exchange takes longer than `answer_timeout_s`).
    Connections are not reused: a stale one would make it unclear whether a request arrived.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        tls: ssl.SSLContext,
        connect_timeout_s: float,
        answer_timeout_s: float,
        observer: SendObserver | None = None,
    ) -> None:
        self._policy = policy
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._observer = observer
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls, max_keepalive_connections=0, network_backend=GuardedBackend(policy)
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._policy.check_url(request.url)
        outgoing = self._outgoing(request)
        try:
            with anyio.fail_after(self._answer_timeout_s):
                answer = await self._pool.handle_async_request(outgoing)
                try:
                    assert isinstance(answer.stream, AsyncIterable)
                    headers = httpx2.Headers(answer.headers)
                    body = _Body(headers.get("content-encoding", ""))
                    async for chunk in answer.stream:
                        body.add(chunk)
                finally:
                    await answer.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout("the whole answer took too long", request=request) from None
        except Exception as error:
            for transport_error, public_error in _ERROR_TYPES:
                if isinstance(error, transport_error):
                    raise public_error(str(error), request=request) from error
            raise
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        return httpx2.Response(answer.status, headers=headers, content=body.content())

    def _outgoing(self, request: httpx2.Request) -> httpcore2.Request:
        """The request as httpcore2 has it, with its limits and its observer."""
        assert isinstance(request.stream, AsyncIterable)
        request.headers["Accept-Encoding"] = "identity"
        extensions: dict[str, Any] = {
            "timeout": {
                "connect": self._connect_timeout_s,
                "read": self._answer_timeout_s,
                "write": self._answer_timeout_s,
            }
        }
        if self._observer is not None:
            extensions["trace"] = self._observer.trace
        url = request.url
        return httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body:
    """Collects and decodes a body, and stops at the limit, before and after decoding."""

    def __init__(self, encoding: str) -> None:
        self._raw = 0
        self._parts = bytearray()
        match encoding.strip().lower():
            case "" | "identity":
                self._decoder = None
            case "gzip" | "x-gzip":
                self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
            case "deflate":
                self._decoder = zlib.decompressobj()
            case _:
                raise Failure(ErrorCode.REPLY_UNREADABLE, "the answer has an unknown content encoding")

    def add(self, chunk: bytes) -> None:
        self._raw += len(chunk)
        if self._decoder is not None:
            # one byte more than the limit reveals that it is exceeded
            room = BODY_LIMIT - len(self._parts) + 1
            try:
                chunk = self._decoder.decompress(chunk, room)
            except zlib.error:
                raise Failure(ErrorCode.REPLY_UNREADABLE, "the answer's compression is broken") from None
        self._parts += chunk
        if len(self._parts) > BODY_LIMIT or self._raw > BODY_LIMIT:
            raise Failure(ErrorCode.REPLY_UNREADABLE, f"the answer is larger than {BODY_LIMIT} bytes")

    def content(self) -> bytes:
        if self._decoder is not None and self._raw and not self._decoder.eof:
            raise Failure(ErrorCode.REPLY_UNREADABLE, "the answer's compression is cut short")
        return bytes(self._parts)


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens the sockets. It resolves each name once, so DNS rebinding can't change the address.

    httpcore2 uses the name for SNI, certificate and Host; only the socket uses the address.
    Raises Failure EGRESS_REFUSED, httpcore2.ConnectError and httpcore2.ConnectTimeout.
    """

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._sockets = cast(httpcore2.AsyncNetworkBackend, httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # httpcore2's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                addresses = await self.checked_addresses(host, port)
                return await self._connect_first(addresses, port, local_address, socket_options)
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"{host}:{port} did not accept a connection in time") from None

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # httpcore2's interface
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise Failure(ErrorCode.EGRESS_REFUSED, "a unix socket is not a provider")

    async def checked_addresses(self, host: str, port: int) -> list[str]:
        """The host's addresses. Raises Failure EGRESS_REFUSED if any of them is private (SSRF)."""
        try:
            resolved = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise httpcore2.ConnectError(f"{host} {DOES_NOT_RESOLVE}") from None
        addresses = list(dict.fromkeys(entry[4][0] for entry in resolved))
        if not self._policy.allows(host, port):
            for address in addresses:
                reason = address_refusal(address)
                if reason:  # one private address among public ones is a sign of rebinding: refuse all
                    raise self._policy.refusal(host, port, f"resolves to {reason}")
        return addresses

    async def _connect_first(
        self,
        addresses: list[str],
        port: int,
        local_address: str | None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception = httpcore2.ConnectError("the host has no address")
        for address in addresses:
            try:
                return await self._sockets.connect_tcp(
                    address, port, local_address=local_address, socket_options=socket_options
                )
            except httpcore2.ConnectError as error:
                failure = error
        raise failure


def default_tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """The machine's certificate authorities, or an operator's own through SSL_CERT_FILE; and the file's.

    Raises Failure INVALID_REQUEST for a file that has none.
    """
    context = httpcore2.default_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            why = "has no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            name = "EVERGRANT_TRUSTED_CA_FILE"
            raise Failure(ErrorCode.INVALID_REQUEST, f"{name}: {ca_file} {why}", field=name) from None
    return context
