"""How many grants a second an import takes in, and how many it verifies by a refresh of each.

One caller sends requests of 50 grants, each once the last is answered, as the command does. API, worker and
Temporal are processes; the provider runs in this one.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from bench import installation
from bench.installation import TENANT, Installation
from bench.load import HOST, body_size
from bench.processes import python_module, running_process
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.crypto.keyring import Role
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

_BATCH = 50  # grants in a request of `evergrant import`
_INSTALL_LIMIT_S = 120.0


@dataclass(frozen=True)
class ImportRate:
    """Grants a second: written without a refresh, installed by workers until all were, and verified."""

    store: str
    grants: int
    written: float
    installed: float
    verified_grants: int
    verified: float


async def measure(store: str, folder: Path, url: str, grants: int, verified_grants: int) -> ImportRate:
    async with (
        ScriptedProvider() as provider,
        running_temporal(folder) as temporal,
        _running(folder, url, temporal.address, provider) as (ready, parts),
    ):
        began = perf_counter()
        await _import(ready, provider, "unverified", grants, verify=False)
        written = perf_counter() - began
        await _installed(parts, grants)
        installed = perf_counter() - began
        began = perf_counter()
        outcomes = await _import(ready, provider, "verified", verified_grants, verify=True)
        took = perf_counter() - began
        ended = sum(outcome["verification"] == "verified" for outcome in outcomes)
    return ImportRate(store, grants, grants / written, grants / installed, verified_grants, ended / took)


@asynccontextmanager
async def _running(
    folder: Path, url: str, address: str, provider: ScriptedProvider
) -> AsyncIterator[tuple[Installation, Platform]]:
    ready = await installation.prepare(
        folder,
        url,
        free_port(),
        [],
        issuer=provider.issuer,
        client_secret=provider.client_secret,
        temporal_address=address,
        egress_allow=(provider.allowance,),
    )
    environment = settings_environment(ready.settings)
    async with open_platform(ready.settings, Role.OPERATOR) as parts:
        await prepare_namespace(parts.client, ready.settings.history_retention)
        api = python_module("evergrant_server serve", folder, env=environment)
        worker = python_module("evergrant_server worker", folder, env=environment)
        async with (
            running_process(api, port=ready.settings.port),
            running_process(worker, words="worker ready"),
        ):
            yield ready, parts


async def _import(
    ready: Installation, provider: ScriptedProvider, prefix: str, grants: int, *, verify: bool
) -> list[dict[str, Any]]:
    """The outcomes. Raises RuntimeError for a request that isn't answered with 200."""
    reader, writer = await asyncio.open_connection(HOST, ready.settings.port)
    outcomes: list[dict[str, Any]] = []
    try:
        for first in range(0, grants, _BATCH):
            numbers = range(first, min(first + _BATCH, grants))
            items = [_item(provider, f"{prefix}-{number}", known=verify) for number in numbers]
            writer.write(_request(ready, {"items": items, "verify": verify}))
            outcomes += (await _answer(reader))["items"]
    finally:
        writer.close()
    return outcomes


def _item(provider: ScriptedProvider, subject: str, *, known: bool) -> dict[str, Any]:
    """A grant; the provider knows its refresh token where it will be refreshed."""
    tokens = provider.grant("read write") if known else installation.token_reply()
    return {
        "integration": "crm",
        "subject": subject,
        "access_token": tokens["access_token"],
        "refresh_token": tokens["refresh_token"],
        "expires_in": 3600,
    }


def _request(ready: Installation, body: dict[str, Any]) -> bytes:
    content = json.dumps(body)
    head = (
        f"POST /v1/connections/import HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {ready.admin_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return (head + content).encode()


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    buffer = b""
    while body_size(buffer) is None:
        received = await reader.read(1 << 16)
        if not received:
            raise RuntimeError("the API closed the connection")
        buffer += received
    head, _, body = buffer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"an import was refused: {body[:400].decode(errors='replace')}")
    return json.loads(body)


async def _installed(parts: Platform, grants: int) -> None:
    """Wait until workers have installed them. Raises TimeoutError."""
    async with asyncio.timeout(_INSTALL_LIMIT_S):
        while await _active(parts) < grants:
            await asyncio.sleep(0.1)


async def _active(parts: Platform) -> int:
    query = "SELECT count(*) FROM connection WHERE tenant = '{}' AND state = '{}'"
    async with parts.store.read() as tx:
        counted = await tx.connection.exec_driver_sql(query.format(TENANT, LifecycleState.ACTIVE.value))
        return int(counted.scalar_one())
