"""The OpenAI Agents SDK."""

import os
from typing import Any

from agents import Agent, Runner
from agents.mcp import MCPServerStreamableHttp
from evergrant import AsyncEvergrant


async def through_gateway(url: str, question: str, model: Any) -> str:
    key = {"Authorization": f"Bearer {os.environ['EVERGRANT_API_KEY']}"}
    async with MCPServerStreamableHttp({"url": url, "headers": key, "timeout": 60}) as tools:
        agent = Agent("greeter", model=model, mcp_servers=[tools])
        return (await Runner.run(agent, question)).final_output


async def with_auth(url: str, origin: str, question: str, model: Any) -> str:
    async with AsyncEvergrant() as evergrant:
        auth = evergrant.auth("tools", "alice", origins=origin)
        async with MCPServerStreamableHttp({"url": url, "auth": auth, "timeout": 60}) as tools:
            agent = Agent("greeter", model=model, mcp_servers=[tools])
            return (await Runner.run(agent, question)).final_output
