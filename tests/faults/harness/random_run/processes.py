"""The random run's installation: real processes on PostgreSQL and Temporal, and who restarts them."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

from evergrant_server.core.clock import SystemClock
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.crypto.root_keys import first_roots
from evergrant_server.store import Store
from evergrant_server.temporal_link.connect import prepare_namespace
from tests.fakes.databases import postgres
from tests.fakes.key_services.openbao import OpenBaoWorld
from tests.fakes.platform.processes import ROOT, RunningPlatform, running_platform
from tests.fakes.ports import free_port
from tests.fakes.temporal import TemporalServer
from tests.faults.harness.database import TENANT, HarnessDatabase
from tests.faults.harness.provider import StrictProvider
from tests.faults.harness.random_run.moved_clock import FILE
from tests.faults.harness.random_run.plan import WORKERS
from tests.faults.harness.random_run.real_server import RealServer

_RESTART_S = 0.5
_HOLD_S = 8  # on a busy machine a process needs seconds for a look


@dataclass
class Installation:
    """Four workers on one host, two APIs, Temporal, a database: and the hands that hurt them."""

    platform: RunningPlatform
    ground: HarnessDatabase
    idp: StrictProvider
    folder: Path
    temporal: TemporalServer
    urls: tuple[str, ...]
    clock_file: Path
    real: RealServer
    service: OpenBaoWorld
    database: asyncio.Lock = field(default_factory=asyncio.Lock)  # hurt one way at a time
    keys: asyncio.Lock = field(default_factory=asyncio.Lock)
    restarting: asyncio.Lock = field(default_factory=asyncio.Lock)
    latest: float = 0.0  # the clock's greatest lead, in seconds

    @property
    def workers(self) -> list[str]:
        return ["worker", *(f"worker-{number}" for number in range(2, WORKERS + 1))]

    async def supervise(self) -> None:
        """Start again what has ended, as an orchestrator does."""
        while True:
            for name in self.workers:
                if self.platform.children[name].returncode is not None:
                    await self.platform.start(name, "worker")
            await asyncio.sleep(_RESTART_S)

    def signal(self, name: str, number: signal.Signals) -> None:
        child = self.platform.children[name]
        if child.returncode is None:
            child.send_signal(number)

    async def database_drops_everybody(self, away_s: float = 0.0) -> None:
        """What clients see of a restart: every session ends, and for a while there is none."""
        name = self.ground.url.partition("?")[0].rpartition("/")[2]
        ours = f"datname = '{name}' AND application_name = 'evergrant' AND pid <> pg_backend_pid()"
        async with self.database:
            if away_s:
                await postgres().admin(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
            await postgres().admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
            if away_s:
                await asyncio.sleep(away_s)
                await postgres().admin(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")

    async def database_restarts(self) -> None:
        """The server itself: a fast shutdown, and the same data on the same socket."""
        async with self.database:
            await asyncio.to_thread(postgres().restart)

    async def temporal_restarts(self) -> None:
        async with self.restarting:  # two at once would leave a server behind
            port = int(self.temporal.address.rpartition(":")[2])
            await self.temporal.kill()
            self.temporal = await TemporalServer.start(self.folder / "temporal", port=port)

    def clock_jumps(self, seconds: float) -> None:
        now = float(self.clock_file.read_text(encoding="utf-8")) + seconds
        self.latest = max(self.latest, now)
        self._set_clock(now)

    def clock_is_right_again(self) -> None:
        """As late as it ever was, so that expired tokens look expired and no timer waits for hours."""
        self._set_clock(self.latest)

    def _set_clock(self, seconds: float) -> None:
        beside = self.clock_file.with_suffix(".new")
        beside.write_text(str(seconds), encoding="utf-8")
        os.replace(beside, self.clock_file)

    async def key_service_away(self, seconds: float, worker: str) -> None:
        """Who runs has its keys for a while; who starts meanwhile refuses to, and is started again."""
        async with self.keys, self.service.closed(ServicePurpose.LEASE):
            self.signal(worker, signal.SIGKILL)
            await asyncio.sleep(seconds)


async def _wrapped(service: OpenBaoWorld, platform: RunningPlatform) -> None:
    """Have the service wrap the keys of the file, which no process but the harness reads from here on."""
    ring = KeyRing.open(platform.key_file, Role.OPERATOR)
    store = await Store.open(platform.env["EVERGRANT_DATABASE_URL"], ring, SystemClock())
    assert ring.file is not None
    async with service.as_role("worker") as worker:
        rows = await first_roots(worker, ring.file, SystemClock().now(), lie_in_file=False)
    async with store.write() as tx:
        for root, wrapped in rows:
            await tx.root_keys.add(root, wrapped)
    await store.close()
    platform.env |= {"EVERGRANT_KEY_SERVICE": service.url, "EVERGRANT_KEY_HOLD": f"{_HOLD_S}"}


@asynccontextmanager
async def installed(folder: Path, idp: StrictProvider, real: RealServer) -> AsyncIterator[Installation]:
    """Everything running; ends every process that it started."""
    clock_file = folder / "clock"
    clock_file.write_text("0", encoding="utf-8")
    (folder / "temporal").mkdir()
    url = await postgres().fresh()
    temporal = await TemporalServer.start(folder / "temporal")
    here = None
    try:
        await prepare_namespace(await temporal.client(), timedelta(days=1))
        path = [ROOT / "tests/faults/harness/random_run/site", ROOT, ROOT / "clients/python/src"]
        env = {
            "EVERGRANT_DATABASE_URL": url,
            "EVERGRANT_TENANT": TENANT,
            "PYTHONPATH": os.pathsep.join(str(it) for it in path),
            FILE: str(clock_file),
        }
        allow = (idp.allowance, real.allowance)
        (folder / "service").mkdir()
        async with (
            OpenBaoWorld.running(folder / "service") as service,
            running_platform(
                folder, temporal.address, allow=allow, env=env, prepared=partial(_wrapped, service)
            ) as platform,
        ):
            ground = await HarnessDatabase.on(url, platform.key_file)
            port = free_port()
            await platform.start("api-2", "evergrant_server", "serve", EVERGRANT_PORT=str(port))
            for number in range(2, WORKERS + 1):
                await platform.start(f"worker-{number}", "worker")
            urls = (platform.url, f"http://127.0.0.1:{port}")
            here = Installation(platform, ground, idp, folder, temporal, urls, clock_file, real, service)
            try:
                yield here
            finally:
                for name in here.workers:
                    here.signal(name, signal.SIGCONT)
                await ground.close_sessions()
    finally:
        with contextlib.suppress(ProcessLookupError):
            await (here.temporal if here else temporal).stop()
        await postgres().drop(url)
