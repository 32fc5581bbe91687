"""A real MCP client at a gateway, in either era, whose person answers what it is asked."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitRequestURLParams, ElicitResult

from tests.fakes.platform.gateway import Gateway

MODERN, LEGACY = "2026-07-28", "legacy"
Opens = Callable[[str], Awaitable[None]]  # what the person does with a page's URL


@asynccontextmanager
async def mcp_client(
    gateway: Gateway,
    key: str,
    *,
    era: str = MODERN,
    opens: Opens | None = None,
    **more: Any,
) -> AsyncIterator[Client]:
    """A client with the key of an app. Without `opens` it declares no elicitation."""

    async def elicited(context: Any, params: Any) -> ElicitResult:
        assert isinstance(params, ElicitRequestURLParams)
        assert opens is not None
        await opens(params.url)
        return ElicitResult(action="accept")

    said = {} if opens is None else {"elicitation_callback": elicited}
    async with AsyncExitStack() as opened:
        headers = {"Authorization": f"Bearer {key}"}
        http = httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False)
        await opened.enter_async_context(http)
        transport = streamable_http_client(f"http://127.0.0.1:{gateway.port}/mcp", http_client=http)
        yield await opened.enter_async_context(Client(transport, mode=era, **said, **more))
