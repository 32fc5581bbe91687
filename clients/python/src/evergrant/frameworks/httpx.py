"""Credentials for httpx, on which MCP clients before version 2 are built (LangChain's adapters, CrewAI)."""

from collections.abc import AsyncGenerator, Generator
from typing import cast

import httpx
import httpx2

# Both libraries' requests and responses have the members that the flows use.
_Sync = Generator[httpx.Request, httpx.Response, None]
_Async = AsyncGenerator[httpx.Request, httpx.Response]


class HttpxAuth(httpx.Auth):
    """An `httpx2.Auth` of this package for httpx's client of the same kind."""

    def __init__(self, auth: httpx2.Auth) -> None:
        self._auth = auth

    def sync_auth_flow(self, request: httpx.Request) -> _Sync:
        return cast("_Sync", self._auth.sync_auth_flow(cast("httpx2.Request", request)))

    def async_auth_flow(self, request: httpx.Request) -> _Async:
        return cast("_Async", self._auth.async_auth_flow(cast("httpx2.Request", request)))
