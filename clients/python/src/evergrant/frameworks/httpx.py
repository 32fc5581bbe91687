"""`auth()` for httpx, on which MCP clients before version 2 are built (LangChain's adapters, CrewAI)."""

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, cast

import httpx
import httpx2

if TYPE_CHECKING:
    from evergrant.auth import AsyncLeaseAuth, LeaseAuth

# Both libraries' requests and responses have the members that the flow uses.
_Sync = Generator[httpx.Request, httpx.Response, None]
_Async = AsyncGenerator[httpx.Request, httpx.Response]


class HttpxLeaseAuth(httpx.Auth):
    """For the client of the same kind: httpx.Client for `Evergrant.auth`, else httpx.AsyncClient."""

    def __init__(self, auth: "LeaseAuth | AsyncLeaseAuth") -> None:
        self._auth = auth

    def sync_auth_flow(self, request: httpx.Request) -> _Sync:
        return cast("_Sync", self._auth.sync_auth_flow(cast("httpx2.Request", request)))

    def async_auth_flow(self, request: httpx.Request) -> _Async:
        return cast("_Async", self._auth.async_auth_flow(cast("httpx2.Request", request)))
