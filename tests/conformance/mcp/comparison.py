"""The judge of MCP servers, about a server by itself and about the same server behind the gateway."""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from evergrant_server.core.access import Action
from examples.demo.processes import Process
from tests.conformance.mcp.verdicts import run_judge
from tests.fakes.api import running_api
from tests.fakes.platform.gateway import RawUpstream, running_gateway

VERDICT = re.compile(r"^[✓✗] (\S+): (\d+) passed, (\d+) failed(?:, (\d+) warnings)?$", re.MULTILINE)
_END = b"\r\n\r\n"


async def compared(revision: str) -> bool:
    """Print the verdicts about both of one revision; returns whether they are the same."""
    server = await Process.start("everything", ["-W", "ignore", "-m", "tests.conformance.mcp.everything"])
    direct_url = f"http://127.0.0.1:{server.ready['port']}"
    try:
        direct = await _verdicts(f"{direct_url}/mcp", revision)
        async with _behind_gateway(direct_url) as url:
            through = await _verdicts(url, revision)
    finally:
        await server.stop()
    print(f"\n{revision}, server mode: passed and failed checks, directly | through the gateway")
    for scenario in sorted(direct.keys() | through.keys()):
        one, other = direct.get(scenario, "none"), through.get(scenario, "none")
        print(f"  {'=' if one == other else '≠'} {scenario}: {one} | {other}")
    same = direct == through and len(direct) > 0
    print(f"{len(direct)} verdicts, {'all the same' if same else 'NOT THE SAME'}", flush=True)
    return same


async def _verdicts(url: str, revision: str) -> dict[str, str]:
    said = await run_judge("server", "--url", url, "--requirements", revision)
    return {name: f"{passed} {failed}" for name, passed, failed, _ in VERDICT.findall(said)}


@asynccontextmanager
async def _behind_gateway(server_url: str) -> AsyncIterator[str]:
    """The URL at which the judge, which sends no credential, reaches the server through the gateway."""
    upstream = RawUpstream()
    upstream.url = server_url
    with tempfile.TemporaryDirectory(prefix="evergrant-conformance-") as data:
        async with running_api(Path(data)) as api:
            shim = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            port = shim.sockets[0].getsockname()[1]
            shim.close()
            api.parts.settings.gateway_public_url = f"http://127.0.0.1:{port}"
            integration = await api.integration("tools", provider="mcp", params={"url": f"{server_url}/mcp"})
            connection = await api.active(integration)
            key = await api.app_with("judge", Action.PROXY)
            async with running_gateway(api, upstream) as gateway:
                adding = partial(add_credential, gateway.port, key.encode())
                async with await asyncio.start_server(adding, "127.0.0.1", port):
                    yield f"http://127.0.0.1:{port}/mcp/{connection.id}"


async def add_credential(
    port: int, key: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One request with `Authorization` put into its head; all else passes as it is."""
    try:
        head = await reader.readuntil(_END)
        onward, away = await asyncio.open_connection("127.0.0.1", port)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        return
    lines = [it for it in head.removesuffix(_END).split(b"\r\n") if not it.lower().startswith(b"connection:")]
    away.write(b"\r\n".join([*lines, b"Authorization: Bearer " + key, b"Connection: close"]) + _END)
    asking = asyncio.create_task(_pass_on(reader, away))
    try:
        await _pass_on(onward, writer)
    finally:
        asking.cancel()
        away.close()
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
        writer.close()
    except ConnectionError:
        writer.close()
