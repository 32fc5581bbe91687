"""LangGraph, with LangChain's MCP adapters. These are built on httpx."""

import os
from typing import Any

from evergrant import AsyncEvergrant
from langchain.agents import create_agent
from langchain_mcp_adapters.client import MultiServerMCPClient


async def through_gateway(url: str, question: str, model: Any) -> str:
    key = {"Authorization": f"Bearer {os.environ['EVERGRANT_API_KEY']}"}
    server = {"transport": "streamable_http", "url": url, "headers": key}
    agent = create_agent(model, await MultiServerMCPClient({"tools": server}).get_tools())
    ended = await agent.ainvoke({"messages": [("user", question)]})
    return ended["messages"][-1].content


async def with_auth(url: str, origin: str, question: str, model: Any) -> str:
    async with AsyncEvergrant() as evergrant:
        auth = evergrant.auth("tools", "alice", origins=origin).for_httpx()
        server = {"transport": "streamable_http", "url": url, "auth": auth}
        agent = create_agent(model, await MultiServerMCPClient({"tools": server}).get_tools())
        ended = await agent.ainvoke({"messages": [("user", question)]})
        return ended["messages"][-1].content
