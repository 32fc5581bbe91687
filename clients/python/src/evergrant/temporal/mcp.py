"""MCP clients in activities, for a connection by its id: it stands in a history, and the token never does.

    MCPPlugin({"crm": mcp_client("https://crm.example/mcp")})

For other clients of httpx2 `connection_auth` is the `auth`. The activity's worker needs `EvergrantPlugin`,
which also refuses a result that repeats the token.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from temporalio.exceptions import ApplicationError

from evergrant.auth import AsyncLeaseAuth
from evergrant.temporal.leases import ActivityLeases, current_leases

_CONNECT_S, _SILENCE_S = 30.0, 300.0  # as the SDK's own client: a server may stream for long


class ConnectionAuth(httpx2.Auth):
    """Leases for the activity that made it. `require_token` raises what a request would, ahead of it."""

    def __init__(self, leases: ActivityLeases, connection_id: str, origins: str) -> None:
        self._leases, self._connection_id, self._origins = leases, connection_id, origins
        self._auth: AsyncLeaseAuth | None = None

    async def require_token(self) -> None:
        """Raises EvergrantError, ReconnectNeeded among them."""
        client = self._leases.clients.asyncio
        found = await client.connection(self._connection_id)
        self._leases.record(await client.lease(found.integration, found.subject, label=found.label))
        self._auth = client.auth(found.integration, found.subject, label=found.label, origins=self._origins)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        if self._auth is None:
            await self.require_token()
        assert self._auth is not None
        flow, response = self._auth.async_auth_flow(request), None
        try:
            while True:
                prepared = await flow.asend(response)  # pyright: ignore[reportArgumentType]  # None begins it
                self._record(prepared)
                response = yield prepared
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()

    def _record(self, request: httpx2.Request) -> None:
        """The plugin must know each token that the activity has had."""
        token = request.headers.get("authorization", "").partition(" ")[2]
        if token and token not in self._leases.secrets:
            self._leases.secrets.append(token)


def connection_auth(connection_id: object, *, origins: str) -> ConnectionAuth:
    """The credential of a connection, for requests of the running activity to this origin.

    Raises a failure that isn't retried for what is no connection's id.
    """
    if not isinstance(connection_id, str) or not connection_id.startswith("con_"):
        raise ApplicationError(
            "this MCP client is for one connection: give its id, factory_argument=connection.id",
            type="ConnectionMissing",
            non_retryable=True,
        )
    return ConnectionAuth(current_leases(), connection_id, origins)


def mcp_client(url: str) -> Callable[[object], Client]:
    """A factory for `MCPPlugin`: a client of this MCP server, for the connection in `factory_argument`."""
    parts = urlsplit(url)

    @asynccontextmanager
    async def transport(auth: ConnectionAuth) -> AsyncGenerator[Any]:
        await auth.require_token()  # here it fails the activity; inside, the SDK's client would wrap it
        timeout = httpx2.Timeout(_CONNECT_S, read=_SILENCE_S)
        async with (
            httpx2.AsyncClient(auth=auth, timeout=timeout) as http,
            streamable_http_client(url, http_client=http) as streams,
        ):
            yield streams

    def connect(connection_id: object) -> Client:
        auth = connection_auth(connection_id, origins=f"{parts.scheme}://{parts.netloc}")
        return Client(transport(auth))

    return connect
