"""Two regions of real processes: PostgreSQL, Temporal, an API and a worker in each, one provider for both."""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench import installation
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Store
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import open_platform
from tests.fakes.platform.compose import finished
from tests.fakes.ports import free_port
from tests.fakes.postgresql.replicated import PostgresServer, replicated
from tests.fakes.temporal import TemporalServer, running_temporal
from tests.faults.failover.network import Segment
from tests.faults.harness.provider import GRACE_S, StrictProvider
from tests.faults.rotation.members import Member

AUTHORITY = timedelta(seconds=4)
_COMMAND_S = 300.0
_RULES = {
    "grace": RefreshRules(rotation=Rotation.GRACE, grace_s=GRACE_S),
    "strict": RefreshRules(rotation=Rotation.STRICT),
}


@dataclass(frozen=True)
class Case:
    """`end`: the old region is killed; paused, and resumed once the new one serves; or cut off from the new
    one alone: its callers go on, and both regions reach the provider. `away`: whether a region refreshes
    while the other one is away (`continue`) or waits for it (`stop`)."""

    seed: int
    connections: int
    load_s: float = 8.0
    leasing: int = 8
    refreshing: int = 4
    end: str = "kill"
    rotation: str = "grace"
    away: str = "continue"
    durability: str = "local"
    wait_s: float = 20.0


@dataclass
class RegionPlace:
    """One region: its database, its Temporal, and the processes that are killed with it."""

    name: str
    settings: Settings
    database: PostgresServer
    temporal: TemporalServer
    members: list[Member]

    @property
    def env(self) -> dict[str, str]:
        return _environment(self.settings)

    async def command(self, *words: str) -> str:
        """A command of the operator in this region; what it printed."""
        command = [sys.executable, "-m", "evergrant_server", "region", *words]
        return await finished(command, {**os.environ, **self.env}, _COMMAND_S)

    def end(self) -> None:
        """As its data centre loses its power: nothing is shut down."""
        self.database.kill()
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """As if it were cut off and silent: it comes back, and knows of nothing."""
        self.database.pause()
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.database.resume()
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for member in self.members:
            member.signal(number)
        os.kill(self.temporal.pid, number)


@dataclass
class Place:
    """Both regions. `ready` has the keys of apps and the connections."""

    ready: installation.Installation
    old: RegionPlace
    new: RegionPlace
    provider: StrictProvider
    segments: list[Segment]

    def part(self) -> None:
        """Cut the regions' databases off from each other. Callers still reach each region."""
        first, second = self.segments
        first.cut_from(second)

    def join(self) -> None:
        """Undo `part`."""
        first, second = self.segments
        first.join_to(second)

    @asynccontextmanager
    async def store(self, region: RegionPlace) -> AsyncIterator[Store]:
        ring = KeyRing.open(self.ready.settings.key_path, Role.WORKER)
        store = await Store.open(region.settings.database_url, ring, SystemClock())
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def two_regions(folder: Path, case: Case, *, networks: bool = False) -> AsyncIterator[Place]:
    """Fill them and run them: `a` serves, and `b` waits. `networks`: each database has one of its own."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(StrictProvider(case.rotation, 3600))
        segments = list[Segment]()
        for number in (1, 2) if networks else ():
            segments.append(Segment(number))
            stack.callback(segments[-1].close)
        apart = {"places": [(segment.address, segment.within) for segment in segments]} if networks else {}
        first, second = await stack.enter_async_context(replicated(synchronous=True, **apart))
        temporals = list[TemporalServer]()
        for name in ("a", "b"):
            (folder / f"temporal-{name}").mkdir()
            running = running_temporal(folder / f"temporal-{name}")
            temporals.append(await stack.enter_async_context(running))
        ready = await installation.prepare(
            folder,
            first.url(),
            free_port(),
            [provider.grant("read write") for _ in range(case.connections)],
            issuer=provider.issuer,
            client_secret=provider.client_secret,
            refresh=_RULES[case.rotation],
            temporal_address=temporals[0].address,
            egress_allow=(provider.allowance,),
            relay_interval=timedelta(seconds=0.2),
            region="a",
            region_wait=timedelta(seconds=1),
            region_authority=AUTHORITY,
            region_away=case.away,
            audit_durability=case.durability,
        )
        old = _region("a", folder, ready.settings, first, temporals[0])
        other = ready.settings.model_dump() | {
            "region": "b",
            "database_url": second.url(),
            "temporal_address": temporals[1].address,
            "port": free_port(),
            "public_url": "",
            "client_metadata_url": "",
            "data_dir": folder / "data-b",
        }
        new = _region("b", folder, load_settings(**other), second, temporals[1])
        await old.command("attach")
        for region in (old, new):
            async with open_platform(region.settings, Role.OPERATOR) as parts:
                await prepare_namespace(parts.client, timedelta(days=1))
                if region is old:
                    await parts.reconciler.reconcile_all(compare=False)
            for member in region.members:
                stack.push_async_callback(member.stop)
                await member.start()
        yield Place(ready, old, new, provider, segments)


def _environment(settings: Settings) -> dict[str, str]:
    """What a child of these settings inherits, with those of regions and the relay."""
    names = "region region_wait region_authority region_away audit_durability relay_interval"
    inherited = names.split()
    values = {name: getattr(settings, name) for name in inherited}
    return settings_environment(settings) | {
        f"EVERGRANT_{name.upper()}": str(value.total_seconds() if isinstance(value, timedelta) else value)
        for name, value in values.items()
    }


def _region(
    name: str, folder: Path, settings: Settings, database: PostgresServer, temporal: TemporalServer
) -> RegionPlace:
    env, port = _environment(settings), settings.port
    (folder / f"data-{name}").mkdir(exist_ok=True)
    words = "worker ready" if name == "a" else "worker waits"
    members = [
        Member(f"api-{name}", "evergrant_server serve", folder, lambda: env, port),
        Member(f"worker-{name}", "tests.faults.region.worker", folder, lambda: env, words=words),
    ]
    return RegionPlace(name, settings, database, temporal, members)


async def promoted(region: RegionPlace, wait_s: float) -> tuple[dict[str, Any], float]:
    """The report of the command, and how long it took."""
    began = time.monotonic()
    printed = await region.command("promote", "--wait", str(wait_s), "-o", "json")
    return json.loads(printed), time.monotonic() - began
