"""Pydantic AI."""

import os
from typing import Any

from evergrant import AsyncEvergrant
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset


async def through_gateway(url: str, question: str, model: Any) -> str:
    key = {"Authorization": f"Bearer {os.environ['EVERGRANT_API_KEY']}"}
    agent = Agent(model, toolsets=[MCPToolset(url, headers=key)])
    return (await agent.run(question)).output


async def with_auth(url: str, origin: str, question: str, model: Any) -> str:
    async with AsyncEvergrant() as evergrant:
        auth = evergrant.auth("tools", "alice", origins=origin)
        agent = Agent(model, toolsets=[MCPToolset(url, auth=auth)])
        return (await agent.run(question)).output
