"""CrewAI. Its MCP servers take fixed headers alone, so the gateway is the way."""

import os
from typing import Any

from crewai import Agent
from crewai.mcp import MCPServerHTTP


def through_gateway(url: str, question: str, model: Any) -> str:
    key = {"Authorization": f"Bearer {os.environ['EVERGRANT_API_KEY']}"}
    tools = [MCPServerHTTP(url=url, headers=key)]
    agent = Agent(role="greeter", goal="greet", backstory="polite", llm=model, mcps=tools)
    return agent.kickoff(question).raw
