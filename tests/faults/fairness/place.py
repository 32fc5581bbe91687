"""The installation: API, worker, PostgreSQL and Temporal as processes, and tenants' rows in the store.

What is neither the API nor the database is kept to one core. On hosts of their own, workers, Temporal and
clients take none of the API's: here they would, and the harness would measure the machine.
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

from sqlalchemy import update
from sqlmodel import col

from evergrant_server.core.access import Action
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.grant import Grant, Origin
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.temporal_link.connect import prepare_namespace
from tests.fakes.databases import postgres
from tests.fakes.platform.compose import ROOT
from tests.fakes.platform.descendants import descendants
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import a_connection, an_integration, discovered, pinned_hosts, put_app, token_set
from tests.fakes.temporal import TemporalServer

_CORES = os.sched_getaffinity(0)
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

    def api_schedule(self) -> tuple[int, int]:
        """The nanoseconds for which the API's processes ran, and were ready and waited for a core."""
        ran = waited = 0
        for pid in descendants(self.platform.children["api"].pid):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):  # it has ended
                    words = (thread / "schedstat").read_text().split()
                    ran, waited = ran + int(words[0]), waited + int(words[1])
        return ran, waited

    async def tenancy(
        self, name: str, idp: ScriptedProvider, size: int, lifetime_s: float, *, age_s: float = 0
    ) -> Tenancy:
        """A tenant whose connections have tokens of this lifetime and age."""
        tenant, now = Tenant(name), datetime.now(UTC)
        permit = {"name": "only", "integration": "*", "actions": (Action.TOKEN,)}
        async with self.store.write() as tx:
            key = await put_app(tx, tenant, "pipeline", now, permit)
            made = an_integration(tenant, now, **discovered(idp))
            integration = await tx.integrations.put(made, Secret(idp.client_secret), expected=None)
        for first in range(0, size, _ROWS):
            numbers = range(first, min(first + _ROWS, size))
            await self._connect(integration, idp, numbers, lifetime_s, now - timedelta(seconds=age_s))
        return Tenancy(tenant, key, integration, size)

    async def _connect(
        self,
        integration: Integration,
        idp: ScriptedProvider,
        numbers: range,
        lifetime_s: float,
        obtained_at: datetime,
    ) -> None:
        now, hosts = datetime.now(UTC), pinned_hosts(integration)
        async with self.store.write() as tx:
            for number in numbers:
                about = {"subject": f"user-{number}", "refresh_policy": "on_demand"}
                connection = a_connection(integration, now, **about)
                tokens = token_set(idp.grant(), expires_in=lifetime_s)
                grant = Grant.from_tokens(tokens, generation=1, requested=("read",), at=obtained_at)
                await tx.connections.add(connection)
                after = connection.granted(now)
                await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=1, hosts=hosts)

    async def let_expire(self, tenancy: Tenancy, valid_s: float) -> None:
        """Have all of a tenant's tokens end in so many seconds, as if time had passed."""
        over = datetime.now(UTC) + timedelta(seconds=valid_s)
        grants, rows = col(ConnectionGrantRow.tenant), col(ConnectionRow.tenant)
        async with self.store.write() as tx:
            await tx.connection.execute(
                update(ConnectionGrantRow).where(grants == tenancy.tenant).values(expires_at=over)
            )
            revised = {"revision": col(ConnectionRow.revision) + 1}
            await tx.connection.execute(update(ConnectionRow).where(rows == tenancy.tenant).values(revised))

    async def temporal_goes_away(self) -> None:
        await self.temporal.kill()

    async def temporal_comes_back(self) -> None:
        port = int(self.temporal.address.rpartition(":")[2])
        self.temporal = await TemporalServer.start(self._folder / "temporal", port=port)
        keep_apart(self.temporal.pid)

    async def started(self, *command: str) -> asyncio.subprocess.Process:
        """A process of the harness, which ends with its standard input."""
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


def keep_apart(pid: int) -> None:
    """Keep every thread of the process, and what it starts from here on, to the machine's last core."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), {max(_CORES)})


@asynccontextmanager
async def running_place(folder: Path, allow: tuple[str, ...], *, forks: bool) -> AsyncIterator[Place]:
    """Everything running; ends every process that it started.

    `forks`: API, worker and commands are forks of a process that has imported them, and of which nothing is
    measured.
    """
    (folder / "temporal").mkdir()
    url = await postgres().fresh()
    temporal = await TemporalServer.start(folder / "temporal")
    place = None
    try:
        keep_apart(temporal.pid)
        await prepare_namespace(await temporal.client(), timedelta(days=1))
        env = {"EVERGRANT_DATABASE_URL": url, "EVERGRANT_RECONCILE_INTERVAL": "P365D"}
        if not forks:
            env["PYTHONPATH"] = os.pathsep.join(str(entry) for entry in (ROOT, ROOT / "clients/python/src"))
        async with running_platform(folder, temporal.address, allow=allow, env=env) as platform:
            keep_apart(platform.children["worker"].pid)
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
