"""The installation: API, worker, PostgreSQL and Temporal as processes, and tenants' rows in the store.

What isn't the API is niced. On hosts of their own, workers, Temporal and clients take none of its cores:
here they would, and the harness would measure the machine.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from evergrant_server.core.access import Action
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.grant import Grant, Origin
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.temporal_link.connect import prepare_namespace
from tests.fakes.databases import postgres
from tests.fakes.platform.compose import ROOT
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import a_connection, an_integration, discovered, pinned_hosts, put_app, token_set
from tests.fakes.temporal import TemporalServer

NICENESS = 10
_ROWS = 100  # in one transaction
_LINE_LIMIT = 1 << 24


@dataclass(frozen=True)
class Tenancy:
    """A tenant with one app, one integration at a provider of its own, and connections there."""

    tenant: Tenant
    key: str
    integration: Integration
    size: int


class Place:
    """The running parts."""

    def __init__(
        self, folder: Path, temporal: TemporalServer, platform: RunningPlatform, store: Store
    ) -> None:
        self.temporal, self.platform, self.store = temporal, platform, store
        self.processes = AsyncExitStack()
        self._folder = folder

    @property
    def port(self) -> int:
        return int(self.platform.url.rpartition(":")[2])

    async def tenancy(self, name: str, idp: ScriptedProvider, size: int, expires_in: float) -> Tenancy:
        """A tenant whose connections have tokens that end in so many seconds."""
        tenant, now = Tenant(name), datetime.now(UTC)
        permit = {"name": "only", "integration": "*", "actions": (Action.TOKEN,)}
        async with self.store.write() as tx:
            key = await put_app(tx, tenant, "pipeline", now, permit)
            made = an_integration(tenant, now, **discovered(idp))
            integration = await tx.integrations.put(made, Secret(idp.client_secret), expected=None)
        for first in range(0, size, _ROWS):
            await self._connect(integration, idp, range(first, min(first + _ROWS, size)), expires_in)
        return Tenancy(tenant, key, integration, size)

    async def _connect(
        self, integration: Integration, idp: ScriptedProvider, numbers: range, expires_in: float
    ) -> None:
        now, hosts = datetime.now(UTC), pinned_hosts(integration)
        async with self.store.write() as tx:
            for number in numbers:
                about = {"subject": f"user-{number}", "refresh_policy": "on_demand"}
                connection = a_connection(integration, now, **about)
                tokens = token_set(idp.grant(), expires_in=expires_in)
                grant = Grant.from_tokens(tokens, generation=1, requested=("read",), at=now)
                await tx.connections.add(connection)
                after = connection.granted(now)
                await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=1, hosts=hosts)

    async def temporal_goes_away(self) -> None:
        await self.temporal.kill()

    async def temporal_comes_back(self) -> None:
        port = int(self.temporal.address.rpartition(":")[2])
        self.temporal = await TemporalServer.start(self._folder / "temporal", port=port)
        nice(self.temporal.pid)

    async def started(self, *command: str) -> asyncio.subprocess.Process:
        """A process of the harness, niced, that ends with its standard input."""
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *command,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            start_new_session=True,
        )
        self.processes.push_async_callback(_ended, child)
        return child


async def _ended(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        assert child.stdin is not None
        child.stdin.close()
        await child.wait()


async def asked(child: asyncio.subprocess.Process, wanted: dict[str, Any]) -> dict[str, Any]:
    """One line to a process of the harness, and its answer."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(wanted).encode() + b"\n")
    await child.stdin.drain()
    return json.loads(await child.stdout.readline())


def nice(pid: int) -> None:
    """Let others come first, for every thread of the process."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread), NICENESS)


@asynccontextmanager
async def running_place(folder: Path, allow: tuple[str, ...]) -> AsyncIterator[Place]:
    """Everything running; ends every process that it started."""
    (folder / "temporal").mkdir()
    url = await postgres().fresh()
    temporal = await TemporalServer.start(folder / "temporal")
    place = None
    try:
        nice(temporal.pid)
        await prepare_namespace(await temporal.client(), timedelta(days=1))
        path = os.pathsep.join(str(entry) for entry in (ROOT, ROOT / "clients/python/src"))
        env = {"EVERGRANT_DATABASE_URL": url, "PYTHONPATH": path, "EVERGRANT_RECONCILE_INTERVAL": "P365D"}
        async with running_platform(folder, temporal.address, allow=allow, env=env) as platform:
            worker = platform.children["worker"]
            assert isinstance(worker, asyncio.subprocess.Process)
            nice(worker.pid)
            store = await Store.open(url, KeyRing.open(platform.key_file, Role.OPERATOR), SystemClock())
            place = Place(folder, temporal, platform, store)
            try:
                async with place.processes:
                    yield place
            finally:
                await store.close()
    finally:
        await (place.temporal if place else temporal).stop()
        await postgres().drop(url)
