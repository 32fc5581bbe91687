"""MCP clients in activities, for a connection by its id: it stands in a history, and the token never does.

    MCPPlugin({"crm": mcp_client()})                           # through the gateway: no token at all
    MCPPlugin({"crm": mcp_client("https://crm.example/mcp")})  # the activity leases

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
        connection = await client.connection(self._connection_id)
        self._leases.record(
            await client.lease(connection.integration, connection.subject, label=connection.label)
        )
        self._auth = client.auth(
            connection.integration, connection.subject, label=connection.label, origins=self._origins
        )

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
    return ConnectionAuth(current_leases(), _require_id(connection_id), origins)


def mcp_client(url: str | None = None) -> Callable[[object], Client]:
    """A factory for `MCPPlugin`: a client of an MCP server, for the connection in `factory_argument`.

    Without a URL it goes through Evergrant's gateway (EVERGRANT_GATEWAY_URL), and no token reaches the
    worker; with the server's URL the activity leases.
    """

    def connect(connection_id: object) -> Client:
        if url is None:
            auth = current_leases().clients.asyncio.gateway_auth()
            return Client(_transport(auth.mcp_url(_require_id(connection_id)), auth))
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        return Client(_transport(url, connection_auth(connection_id, origins=origin)))

    return connect


@asynccontextmanager
async def _transport(url: str, auth: httpx2.Auth) -> AsyncGenerator[Any]:
    if isinstance(auth, ConnectionAuth):
        await auth.require_token()  # here it fails the activity; inside, the SDK's client would wrap it
    timeout = httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S)
    async with (
        httpx2.AsyncClient(auth=auth, timeout=timeout) as http,
        streamable_http_client(url, http_client=http) as streams,
    ):
        yield streams


def _require_id(connection_id: object) -> str:
    if isinstance(connection_id, str) and connection_id.startswith("con_"):
        return connection_id
    raise ApplicationError(
        "this MCP client is for one connection: give its id, factory_argument=connection.id",
        type="ConnectionMissing",
        non_retryable=True,
    )
