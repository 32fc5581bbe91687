"""MCP servers that aren't ours: the guides against the TypeScript SDK's example; the protocol's own judge."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from examples.demo.processes import Process
from tests.conformance.mcp.driver import driver
from tests.conformance.mcp.verdicts import NODE, PACKAGES, judge, judge_ports, node_environment
from tests.e2e.world import World, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.compose import ROOT

GUIDE = (ROOT / "docs/guide/mcp.md").read_text(encoding="utf-8")
GATEWAY_GUIDE = (ROOT / "docs/guide/mcp-gateway.md").read_text(encoding="utf-8")
EXAMPLE = PACKAGES / "@modelcontextprotocol/sdk/dist/esm/examples/server/simpleStreamableHttp.js"
EXAMPLE_BOTH_WAYS = """\
evergrant permits put agent both --integration tools --action token --action proxy --subject alice >permit
export GATEWAY_MCP_URL=$(evergrant mcp url tools alice) TOOLS_URL=http://localhost:3000/mcp
export EVERGRANT_URL=http://127.0.0.1:8480 EVERGRANT_API_KEY=$(cat agent.key)
python -m tests.frameworks.run with_mcp
"""
SCENARIOS = (
    *("scope-step-up", "authorization-server-migration", "iss-normalized"),
    "enterprise-managed-authorization",
)
_PORTS_EACH = 3

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for both: it takes seconds


class Servers(World):
    """With the ports of the servers that it may call."""

    example: tuple[int, ...]
    judges: list[int]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    example, judges = judge_ports(2), judge_ports(_PORTS_EACH * len(SCENARIOS))
    allowed = [f"localhost:{port}" for port in (*example, *judges)]
    async with running(Servers, tmp_path_factory.mktemp("mcp") / "data", *allowed) as world:
        world.example, world.judges = tuple(example), judges
        yield world


@pytest.mark.soak
async def test_the_guides_lead_to_calls_of_a_tool(world: Servers, tmp_path: Path):
    """docs/guide/mcp.md, then mcp-gateway.md: their commands and programs run as they are written.

    The server takes only tokens that were issued for it, and knows clients that registered themselves.
    """
    port, auth_port = world.example
    env = node_environment(MCP_PORT=str(port), MCP_AUTH_PORT=str(auth_port))
    server = await Process.start(
        "mcp-server",
        [str(EXAMPLE), "--oauth", "--oauth-strict"],
        program=str(NODE),
        ready_prefix="MCP Streamable HTTP Server listening",
        env=env,
    )
    try:
        reader = _Reader(tmp_path, world, port)
        put, app, call = _blocks("sh", GUIDE)
        (program,) = _blocks("python", GUIDE)
        (tmp_path / "tools.py").write_text(reader.typed(program))
        assert re.search(r"^state +ready$", await reader.follow(put), re.MULTILINE)
        await reader.follow(app)
        assert "'greet'" in await reader.follow(call)
        made = await world.admin.get("/v1/integrations/tools")
        assert made["resource"] == f"http://localhost:{port}/mcp"
        assert made["authorization_server"] == f"http://localhost:{auth_port}/"
        permit, through = _blocks("sh", GATEWAY_GUIDE)
        (program,) = _blocks("python", GATEWAY_GUIDE)
        (tmp_path / "through_gateway.py").write_text(program)
        assert "/mcp/con_" in await reader.follow(permit)
        said = await reader.follow(through)
        assert "'greet'" in said
        assert "Hello, Alice!" in said
        assert (await reader.follow(EXAMPLE_BOTH_WAYS)).splitlines() == [
            "gateway: Hello, Alice!",
            "auth(): Hello, Alice!",
        ]
    finally:
        await server.stop()


@pytest.mark.soak
async def test_the_judge_of_mcp_clients_agrees(world: Servers):
    """A few scenarios of the protocol's conformance suite; `make conformance` runs all that are required. The
    extension's is of no revision."""
    async with driver(world) as port:
        for number, scenario in enumerate(SCENARIOS):
            ports = world.judges[_PORTS_EACH * number :][:_PORTS_EACH]
            said = await judge(
                port, ports, "--scenario", f"auth/{scenario}", "--spec-version", "2026-07-28", "--force"
            )
            assert "OVERALL: PASSED" in said, said


def _blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


class _Reader:
    """Follows the guide in a folder as after `make dev`; its browser consents by itself."""

    def __init__(self, folder: Path, world: World, port: int) -> None:
        self._folder, self._port, self._url = folder, port, world.platform.api
        browser = folder / "browser"
        browser.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fakes.platform.browser "$1"\n')
        browser.chmod(0o700)
        for name, text in {
            "admin.key": world.platform.admin_key,
            "evergrant.env": f"EVERGRANT_URL={self._url}\nEVERGRANT_GATEWAY_URL={world.platform.gateway}\n"
            "EVERGRANT_API_KEY_FILE=admin.key\n",
        }.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
        paths = {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python/src'}",
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        }
        self._env = kept | paths | {"BROWSER": f"{browser} %s"}

    def typed(self, text: str) -> str:
        return text.replace("localhost:3000", f"localhost:{self._port}").replace(
            "http://127.0.0.1:8480", self._url
        )

    async def follow(self, commands: str) -> str:
        pipe = asyncio.subprocess.PIPE
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euc", self.typed(commands)),
            cwd=self._folder,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
        out, err = await asyncio.wait_for(shell.communicate(), PATIENCE_S)
        assert shell.returncode == 0, (out.decode(), err.decode())
        return out.decode()
