"""An installation on two PostgreSQL servers: two APIs, a worker, Temporal, and an authorization server that
rotates strictly."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from bench import installation
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import open_platform
from tests.fakes.ports import free_port
from tests.fakes.postgresql.replicated import OWNER, PostgresServer, begin_replication, pair_folder
from tests.fakes.temporal import running_temporal
from tests.faults.failover.network import Segment
from tests.faults.harness.provider import StrictProvider
from tests.faults.rotation.load import Order
from tests.faults.rotation.members import Member, Onlooker

_TOKEN_S = 3600


@dataclass(frozen=True)
class Size:
    """How large the proof is."""

    leasing: int
    refreshing: int
    pause_s: float  # of a caller between two leases
    seed: int


@dataclass
class Place:
    """The running parts. `primary` and `standby` change places with each fail-over."""

    primary: PostgresServer
    standby: PostgresServer
    segments: dict[str, Segment]  # by the server's name; empty where there are none
    ready: installation.Installation
    idp: StrictProvider
    order: Order

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[Onlooker]:
        load = Onlooker("tests.faults.failover.load", dict, asdict(self.order))
        await load.start()
        yield load

    async def lost(self) -> list[str]:
        """The connections whose grant can't be refreshed any more: ended, or with a token that was spent."""
        settings = self.ready.settings
        store = await Store.open(
            settings.database_url, KeyRing.open(settings.key_path, Role.WORKER), SystemClock()
        )
        lost: list[str] = []
        try:
            async with store.read() as tx:
                for connection in self.ready.connections:
                    row = await tx.connections.get(connection.tenant, connection.id)
                    assert row is not None
                    token = await tx.grants.refresh_token(row)
                    usable = self.idp.usable(token.reveal() if token is not None else None)
                    if row.state is not LifecycleState.ACTIVE or not usable:
                        lost.append(f"{row.id} is {row.state} at generation {row.generation}")
        finally:
            await store.close()
        return lost


@asynccontextmanager
async def running_place(
    folder: Path, size: Size, *, synchronous: bool, networks: bool
) -> AsyncIterator[Place]:
    """`networks`: each server has one of its own, from which it can be cut off."""
    async with AsyncExitStack() as stack:
        segments = {name: Segment(number) for number, name in enumerate("ab", 1)} if networks else {}
        for segment in segments.values():
            stack.callback(segment.close)
        data = stack.enter_context(pair_folder())
        first, second = (
            PostgresServer(name, data, segments[name].address, segments[name].within)
            if networks
            else PostgresServer(name, data)
            for name in "ab"
        )
        for server in (first, second):
            stack.callback(server.kill)
        await begin_replication(
            first, second, synchronous=synchronous, default="on" if synchronous else "local"
        )
        idp = await stack.enter_async_context(StrictProvider("strict", _TOKEN_S))
        temporal = await stack.enter_async_context(running_temporal(folder))
        ports = [free_port(), free_port()]
        ready = await installation.prepare(
            folder,
            f"postgresql+asyncpg://{OWNER}@/postgres?host={first.address}&host={second.address}",
            ports[0],
            [idp.grant("read write") for _ in range(size.refreshing)],
            issuer=idp.issuer,
            client_secret=idp.client_secret,
            refresh=RefreshRules(rotation=Rotation.STRICT),
            temporal_address=temporal.address,
            egress_allow=(idp.allowance,),
        )
        await installation.populate(ready, range(size.refreshing, size.refreshing + size.leasing))
        await _start(ready, folder, ports, stack)
        subjects = [f"user-{number:04}" for number in range(size.refreshing + size.leasing)]
        order = Order(
            ports=ports,
            key=ready.key,
            admin_key=ready.admin_key,
            seed=size.seed,
            readers=size.leasing,
            pause_s=size.pause_s,
            tokens=dict.fromkeys(subjects),
            refreshing={connection.id: connection.generation for connection in ready.connections},
        )
        yield Place(first, second, segments, ready, idp, order)


async def _start(
    ready: installation.Installation, folder: Path, ports: list[int], stack: AsyncExitStack
) -> None:
    """Start the workflows of the connections that are refreshed, two APIs and a worker."""
    shared = settings_environment(ready.settings)
    async with open_platform(ready.settings, Role.OPERATOR) as parts:
        await prepare_namespace(parts.client, timedelta(days=1))
        for connection in ready.connections:
            await parts.reconciler.start_workflow(connection.tenant, connection.id)

    def env(**values: str) -> Callable[[], dict[str, str]]:
        return lambda: shared | values

    members = [
        Member(f"api-{number}", "evergrant_server serve", folder, env(EVERGRANT_PORT=str(port)), port)
        for number, port in enumerate(ports, 1)
    ]
    members.append(Member("worker", "evergrant_server worker", folder, env()))
    for member in members:
        stack.push_async_callback(member.stop)
    await asyncio.gather(*(member.start() for member in members))
