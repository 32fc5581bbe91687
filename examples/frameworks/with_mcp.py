"""A plain MCP client, of the protocol's own SDK."""

import os

import httpx2
from evergrant import AsyncEvergrant
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def through_gateway(url: str, name: str) -> str:
    key = {"Authorization": f"Bearer {os.environ['EVERGRANT_API_KEY']}"}
    async with (
        httpx2.AsyncClient(headers=key, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as server,
    ):
        return (await server.call_tool("greet", {"name": name})).content[0].text


async def with_auth(url: str, origin: str, name: str) -> str:
    async with AsyncEvergrant() as evergrant:
        auth = evergrant.auth("tools", "alice", origins=origin)
        async with (
            httpx2.AsyncClient(auth=auth, timeout=60) as http,
            Client(streamable_http_client(url, http_client=http)) as server,
        ):
            return (await server.call_tool("greet", {"name": name})).content[0].text
