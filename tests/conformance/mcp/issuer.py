"""The judge of authorization servers, about Evergrant as the issuer of its gateways; and stock clients, which
are given the gateway's URL alone: two that register themselves, one that is a metadata document."""

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from examples.demo.subject import Subject
from tests.conformance.mcp.verdicts import NODE, PACKAGES, node_environment, start_judge
from tests.e2e.flows.stock_client import AgentFile, stock_client
from tests.e2e.flows.test_people import People
from tests.e2e.world import running
from tests.fakes.certificates import loopback_tls
from tests.fakes.http_server import listening, read_request
from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port
from tests.fakes.providers.oidc_provider import running_oidc_provider

_VERDICT = re.compile(r"^\S+ (authoriz\S+): (\d+) passed, (\d+) failed(?:, (\d+) warnings)?$", re.MULTILINE)
_SCENARIOS = 2
STOCK = Path(__file__).parent / "judge" / "stock.mjs"


async def judged_issuer() -> bool:
    """Print the verdicts about our issuer, and how stock clients fare; returns whether all is well."""
    with tempfile.TemporaryDirectory(prefix="evergrant-conformance-") as folder:
        async with _document_host(Path(folder)) as document, running_oidc_provider() as server:
            data, host = Path(folder) / "data", document.removeprefix("https://").partition("/")[0]
            async with running(People, data, server.issuer, host) as world:
                world.server = server
                await world.set_up()
                await _set_rule(world)
                good = await _judged(world)
                for what, more in (
                    ("registers itself", {}),
                    ("is a metadata document", {"client_metadata_url": document}),
                ):
                    good &= await _stock(world, what, **more)
                good &= await _stock_in_typescript(world)
    return good


async def _set_rule(world: People) -> None:
    permit = {"integration": "*", "actions": ["proxy", "connect"]}
    await world.admin.put("/v1/apps/agents", {})
    await world.admin.put("/v1/apps/agents/permits/all", permit)
    await world.admin.put("/v1/client-login", {"integration": "staff", "app": "agents"})


async def _judged(world: People) -> bool:
    """The judge prints the address that a browser has to open, and waits for its answer."""
    port = free_port()
    body = {"name": "the judge", "redirect_uris": [f"http://127.0.0.1:{port}/callback"]}
    client = (await world.admin.post("/v1/oauth-clients", body))["client_id"]
    words = ("--url", world.platform.api, "--client-id", client, "--port", str(port))
    judge = await start_judge("authorization", *words, "--resource", f"{world.platform.gateway}/mcp")
    assert judge.stdout is not None
    said = ""
    async with asyncio.timeout(PATIENCE_S), Subject("sam", "any") as person:
        async for raw in judge.stdout:
            line = raw.decode()
            said += line
            if line.startswith(f"{world.platform.api}/oauth/authorize?"):
                await person.consent(line.strip())
    verdicts = _VERDICT.findall(said)
    print("\nauthorization mode, against our issuer")
    for scenario, passed, failed, warnings in verdicts:
        print(f"  {scenario}: {passed} passed, {failed} failed, {warnings or 0} warnings")
    bad = [it for it in verdicts if it[1] == "0" or it[2] != "0" or it[3] not in ("", "0")]
    if bad or len(verdicts) != _SCENARIOS:
        print(said, file=sys.stderr)
    return not bad and len(verdicts) == _SCENARIOS


async def _stock(world: People, what: str, **more: Any) -> bool:
    """The MCP SDK's client, at Evergrant's own server, with the person's browser."""
    kept, pages = AgentFile(), []
    async with Subject("sam", "any") as person:

        async def lets_in(address: str) -> None:
            pages.append(await person.consent(address))

        url = f"{world.platform.gateway}/mcp"
        async with stock_client(url, kept, lets_in, **more) as client:
            tools = (await client.list_tools()).tools
    good = bool(tools) and kept.tokens is not None and len(pages) == 1
    print(f"  {'✓' if good else '✗'} a stock client that {what}: {len(tools)} tools", flush=True)
    return good


async def _stock_in_typescript(world: People) -> bool:
    """The TypeScript SDK's client, which the judge's packages bring."""
    redirect, pipe = f"http://127.0.0.1:{free_port()}/callback", asyncio.subprocess.PIPE
    words = (PACKAGES, f"{world.platform.gateway}/mcp", redirect)
    child = await asyncio.create_subprocess_exec(
        NODE, STOCK, *words, env=node_environment(), stdin=pipe, stdout=pipe
    )
    assert child.stdin is not None
    assert child.stdout is not None
    async with asyncio.timeout(PATIENCE_S), Subject("sam", "any") as person:
        address = (await child.stdout.readline()).decode().strip()
        back = await person.consent(address, stop_before=redirect)
        child.stdin.write(f"{back.url}\n".encode())
        tools = json.loads((await child.stdout.readline()).decode() or "[]")
        status = await child.wait()
    good = status == 0 and bool(tools)
    print(f"  {'✓' if good else '✗'} the TypeScript SDK's client: {len(tools)} tools", flush=True)
    return good


@asynccontextmanager
async def _document_host(folder: Path) -> AsyncIterator[str]:
    """The URL of a metadata document on loopback, whose certificate every process of the platform trusts."""
    tls, urls = loopback_tls(folder), []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        said = {"client_id": urls[0], "client_name": "Coder", "redirect_uris": ["http://127.0.0.1/callback"]}
        body = json.dumps(said).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(tls.authorities)
    try:
        async with listening(talk, tls=tls.server) as port:
            urls.append(f"https://127.0.0.1:{port}/coder.json")
            yield urls[0]
    finally:
        if before is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = before
