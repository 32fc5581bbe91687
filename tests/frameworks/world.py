"""What the examples run against: a platform, an MCP server that is not ours, and alice's connection there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from examples.demo.processes import Process
from examples.demo.subject import Subject
from tests.conformance.mcp.verdicts import NODE, PACKAGES, judge_ports, node_environment
from tests.e2e.world import World, running

SERVER = PACKAGES / "@modelcontextprotocol/sdk/dist/esm/examples/server/simpleStreamableHttp.js"


@asynccontextmanager
async def connected_tools(data: Path) -> AsyncIterator[dict[str, str]]:
    """The environment of an example's process. The server takes only tokens that were issued for it."""
    port, auth_port = judge_ports(2)
    allowed = (f"localhost:{port}", f"localhost:{auth_port}")
    server = await Process.start(
        "mcp-server",
        [str(SERVER), "--oauth", "--oauth-strict"],
        program=str(NODE),
        ready_prefix="MCP Streamable HTTP Server listening",
        env=node_environment(MCP_PORT=str(port), MCP_AUTH_PORT=str(auth_port)),
    )
    try:
        async with running(World, data, *allowed, actions=("token", "connect", "proxy")) as world:
            tools = f"http://localhost:{port}/mcp"
            connection = await _consented(world, tools)
            yield {
                "EVERGRANT_URL": world.platform.api,
                "EVERGRANT_API_KEY": world.key,
                "GATEWAY_MCP_URL": f"{world.platform.gateway}/mcp/{connection}",
                "TEMPORAL_ADDRESS": world.platform.temporal,
                "TOOLS_URL": tools,
            }
    finally:
        await server.stop()


async def _consented(world: World, url: str) -> str:
    await world.integration("tools", {"provider": "mcp", "params": {"url": url}})
    begun = await world.begin("tools", "alice")
    async with Subject("sam", "a-password") as subject:
        await subject.consent(begun["connect_url"])
    return (await world.active(begun))["id"]
