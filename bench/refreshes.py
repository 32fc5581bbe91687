"""Refreshes per second through `ensure_fresh`, against an update with an activity that does nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from temporalio.client import Client, WorkflowHandle

from bench import installation
from bench.bounds import Bounds
from bench.ceiling import Ceiling
from bench.processes import python_module, running_process, sqlite
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.crypto.keyring import Role
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

CALLERS = 16
_ROUNDS = 3
_ASKED = RequestContext(by="app:pipeline")


@dataclass(frozen=True)
class RefreshRate:
    """One row. Rates are per second, times milliseconds; `events` counts history events per refresh."""

    events: float
    refreshes: float
    refresh_ms: float
    ceiling: float
    ceiling_ms: float
    provider_calls: int
    done: int

    @property
    def ratio(self) -> float:
        return self.refreshes / self.ceiling


@dataclass
class _Side:
    """One kind of update and the results of its rounds. Each caller has its own workflow."""

    update: Callable[[int], Awaitable[None]]
    took: list[float]
    seconds: float = 0.0

    async def round(self, seconds: float, most: int) -> None:
        began = perf_counter()
        done = 0

        async def call(caller: int) -> None:
            nonlocal done
            while perf_counter() < began + seconds and done < most:
                sent = perf_counter()
                await self.update(caller)
                self.took.append(perf_counter() - sent)
                done += 1

        await asyncio.gather(*(call(caller) for caller in range(CALLERS)))
        self.seconds += perf_counter() - began


async def measure(folder: Path, bounds: Bounds) -> RefreshRate:
    """Measure both in turns against one Temporal server; the provider runs in this process."""
    async with (
        ScriptedProvider() as idp,
        running_temporal(folder) as temporal,
        _product(folder, temporal.address, idp) as (parts, connections),
        _ceiling(folder, temporal.address) as handles,
    ):
        return await _alternate(parts, connections, handles, idp, bounds)


async def _alternate(
    parts: Platform,
    connections: tuple[Connection, ...],
    handles: list[WorkflowHandle[Ceiling, None]],
    idp: ScriptedProvider,
    bounds: Bounds,
) -> RefreshRate:
    seen = [connection.generation for connection in connections]

    async def refresh(caller: int) -> None:
        mine = connections[caller]
        ask = EnsureFresh(seen_generation=seen[caller], context=_ASKED)
        fresh = await parts.link.ensure_fresh(mine.tenant, mine.id, ask, timeout=20)
        if fresh.problem is not None or fresh.generation <= seen[caller]:
            raise RuntimeError(f"not refreshed: {fresh}")
        seen[caller] = fresh.generation

    async def poke(caller: int) -> None:
        await handles[caller].execute_update(Ceiling.poke, 1)

    ours, theirs = _Side(refresh, []), _Side(poke, [])
    for side in (ours, theirs):
        await _update_all(side.update)
    before, calls = await _events(parts, connections), idp.refreshes
    for _ in range(_ROUNDS):
        for side in (ours, theirs):
            await side.round(bounds.seconds / _ROUNDS, bounds.most)
    done = len(ours.took)
    return RefreshRate(
        events=(await _events(parts, connections) - before) / done,
        refreshes=done / ours.seconds,
        refresh_ms=median(ours.took) * 1000,
        ceiling=len(theirs.took) / theirs.seconds,
        ceiling_ms=median(theirs.took) * 1000,
        provider_calls=idp.refreshes - calls,
        done=done,
    )


async def _update_all(update: Callable[[int], Awaitable[None]]) -> None:
    """Update every workflow once, so that the worker has it in its cache."""
    await asyncio.gather(*(update(caller) for caller in range(CALLERS)))


async def _events(parts: Platform, connections: tuple[Connection, ...]) -> int:
    """Events in the histories of all these connections' workflows."""
    names = [connection_workflow_id(connection.tenant, connection.id) for connection in connections]
    return sum([len(await parts.link.history(name)) for name in names])


@asynccontextmanager
async def _product(
    folder: Path, address: str, idp: ScriptedProvider
) -> AsyncIterator[tuple[Platform, tuple[Connection, ...]]]:
    """Run a worker on a store whose connections all have a workflow."""
    ready = await installation.prepare(
        folder,
        sqlite(folder),
        free_port(),
        [idp.grant("read write") for _ in range(CALLERS)],
        issuer=idp.issuer,
        client_secret=idp.client_secret,
        temporal_address=address,
        egress_allow=(idp.allowance,),
    )
    worker = python_module("evergrant_server worker", folder, env=settings_environment(ready.settings))
    async with open_platform(ready.settings, Role.OPERATOR) as parts:
        await prepare_namespace(parts.client, ready.settings.history_retention)
        async with running_process(worker, words="worker ready"):
            await parts.reconciler.reconcile_all()
            yield parts, ready.connections


@asynccontextmanager
async def _ceiling(folder: Path, address: str) -> AsyncIterator[list[WorkflowHandle[Ceiling, None]]]:
    queue = f"bench-{new_id('out')[-8:]}"
    client = await Client.connect(address)
    async with running_process(python_module("bench.ceiling", folder, address, queue), words="worker ready"):
        yield [
            await client.start_workflow(Ceiling.run, id=f"ceiling:{number}", task_queue=queue)
            for number in range(CALLERS)
        ]
