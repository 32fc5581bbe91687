"""A stock MCP client that is given a URL alone: the MCP SDK's OAuth, and a listener on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from tests.fakes.http_server import listening, read_request
from tests.fakes.patience import PATIENCE_S

Opens = Callable[[str], Awaitable[None]]  # what a person does with the URL that a client opens


class AgentFile:
    """What a client keeps in its file: its registration, and its tokens."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@asynccontextmanager
async def landing() -> AsyncIterator[tuple[str, "asyncio.Queue[dict[str, str]]"]]:
    """A redirect URI on loopback, and the parameters of each answer that comes there."""
    came: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, target, _, _ = await read_request(reader)
        query = parse_qs(urlsplit(target).query)
        if urlsplit(target).path == "/callback":
            came.put_nowait({name: values[0] for name, values in query.items()})
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nDone")
        await writer.drain()

    async with listening(talk) as port:
        yield f"http://127.0.0.1:{port}/callback", came


@asynccontextmanager
async def stock_client(url: str, kept: AgentFile, opens: Opens, **more: Any) -> AsyncIterator[Client]:
    """Connected, once the person has let it in. `more` is of `OAuthClientProvider`."""
    async with AsyncExitStack() as opened:
        redirect, came = await opened.enter_async_context(landing())

        async def called_back() -> AuthorizationCodeResult:
            answer = await asyncio.wait_for(came.get(), PATIENCE_S)
            assert "code" in answer, answer
            return AuthorizationCodeResult(
                code=answer["code"], state=answer.get("state"), iss=answer.get("iss")
            )

        about = OAuthClientMetadata.model_validate({"client_name": "Coder", "redirect_uris": [redirect]})
        auth = OAuthClientProvider(url, about, kept, opens, called_back, **more)
        http = httpx2.AsyncClient(auth=auth, timeout=PATIENCE_S, trust_env=False)
        await opened.enter_async_context(http)
        transport = streamable_http_client(url, http_client=http)
        yield await opened.enter_async_context(Client(transport))
