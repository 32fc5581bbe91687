"""Resolves a host, checks every address, and connects to the one that was checked."""

import socket
import ssl
from collections.abc import Iterable
from typing import cast

import anyio
import httpcore2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress.addresses import address_refusal
from evergrant_server.egress.policy import EgressPolicy


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
                addresses = await self._resolve(host, port)
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

    async def _resolve(self, host: str, port: int) -> list[str]:
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise httpcore2.ConnectError(f"{host} does not resolve") from None
        addresses = list(dict.fromkeys(entry[4][0] for entry in found))
        if not self._policy.allows(host, port):
            for address in addresses:
                reason = address_refusal(address)
                if reason:  # one private address among public ones is a sign of rebinding: refuse all
                    raise Failure(ErrorCode.EGRESS_REFUSED, f"{host} resolves to {reason}", host=host)
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


def default_tls_context() -> ssl.SSLContext:
    """The machine's certificate authorities, or an operator's own through SSL_CERT_FILE."""
    return httpcore2.default_ssl_context()
