"""What connections cost that have a workflow: Temporal's disk and memory, idle CPU, and their refreshes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from bench import installation
from bench.capacity.stored import FILE
from bench.capacity.usage import Usage, database_bytes, pid_of, usage_of
from bench.installation import Installation
from bench.processes import python_module, running_process, sqlite
from evergrant_server.cli.process import ChildProcess
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.crypto.keyring import Role
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import TemporalServer, running_temporal

_TEMPORAL = "temporal.db"
_IDLE_S = 20.0
_SETTLE_S, _SETTLE_LIMIT_S = 5, 120.0
_QUIET_CPU = 0.1  # of a second, of all processes
_REFRESH_S = 8.0
_CALLERS = 16
_ASKED = RequestContext(by="app:pipeline")
# What Temporal Cloud bills as an action (docs.temporal.io/cloud/actions), by the event of the history
_ACTIONS = {
    "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED",
    "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED",
    "EVENT_TYPE_TIMER_STARTED",
    "EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED",
    "EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED",
    "EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
}


@dataclass(frozen=True)
class RefreshCost:
    """Of one refresh: CPU in seconds, disk in bytes, and what Temporal counts."""

    a_second: float
    worker_cpu: float
    temporal_cpu: float
    disk: float
    temporal_disk: float
    events: float
    actions: float


@dataclass(frozen=True)
class Running:
    """Connections with a workflow. Bytes and MiB are of one of them; idle: CPU seconds a minute of API,
    worker and Temporal."""

    runs: int
    starts: float
    temporal_disk: float
    temporal_memory: float
    worker_memory: float
    idle_none: tuple[float, ...]
    idle: tuple[float, ...]
    refresh: RefreshCost


async def measure(folder: Path, runs: int) -> Running:
    """With that many connections that have a workflow."""
    async with ScriptedProvider() as provider, running_temporal(folder) as temporal:
        ready = await installation.prepare(
            folder,
            sqlite(folder),
            free_port(),
            [],
            issuer=provider.issuer,
            client_secret=provider.client_secret,
            temporal_address=temporal.address,
            egress_allow=(provider.allowance,),
        )
        async with _processes(folder, ready, temporal) as (parts, processes):
            await _settled(processes)
            idle_none = await _idle(processes)
            before, disk = processes.usage(), database_bytes(folder / _TEMPORAL)
            connections = await installation.populate(
                ready, range(runs), lambda: provider.grant("read write")
            )
            began = perf_counter()
            await parts.reconciler.reconcile_all(compare=False)
            starts = runs / (perf_counter() - began)
            await _settled(processes)
            after, disk = processes.usage(), database_bytes(folder / _TEMPORAL) - disk
            idle = await _idle(processes)
            cost = await _refresh_cost(folder, parts, processes, connections)
    return Running(
        runs=runs,
        starts=starts,
        temporal_disk=disk / runs,
        temporal_memory=(after[2].memory - before[2].memory) / runs,
        worker_memory=(after[1].memory - before[1].memory) / min(runs, ready.settings.cached_workflows),
        idle_none=idle_none,
        idle=idle,
        refresh=cost,
    )


@dataclass(frozen=True)
class _Processes:
    api: ChildProcess
    worker: ChildProcess
    temporal: TemporalServer

    def usage(self) -> tuple[Usage, Usage, Usage]:
        """Of API, worker and Temporal."""
        return usage_of(pid_of(self.api)), usage_of(pid_of(self.worker)), usage_of(self.temporal.pid)


@asynccontextmanager
async def _processes(
    folder: Path, ready: Installation, temporal: TemporalServer
) -> AsyncIterator[tuple[Platform, _Processes]]:
    environment = settings_environment(ready.settings)
    async with open_platform(ready.settings, Role.OPERATOR) as parts:
        await prepare_namespace(parts.client, ready.settings.history_retention)
        api = python_module("evergrant_server serve", folder, env=environment)
        worker = python_module("evergrant_server worker", folder, env=environment)
        async with (
            running_process(api, port=ready.settings.port),
            running_process(worker, words="worker ready"),
        ):
            yield parts, _Processes(api, worker, temporal)


async def _settled(processes: _Processes) -> None:
    """Wait until the worker and Temporal have done what was begun, some minutes at the most."""
    ends, quiet = perf_counter() + _SETTLE_LIMIT_S, 0
    while quiet < _SETTLE_S and perf_counter() < ends:
        before = processes.usage()
        await asyncio.sleep(1)
        pairs = zip(processes.usage(), before, strict=True)
        quiet = quiet + 1 if sum(now.cpu - then.cpu for now, then in pairs) < _QUIET_CPU else 0


async def _idle(processes: _Processes) -> tuple[float, ...]:
    """CPU seconds a minute of each while nobody asks anything."""
    before = processes.usage()
    await asyncio.sleep(_IDLE_S)
    pairs = zip(processes.usage(), before, strict=True)
    return tuple((now.cpu - then.cpu) * 60 / _IDLE_S for now, then in pairs)


async def _refresh_cost(
    folder: Path, parts: Platform, processes: _Processes, connections: Sequence[Connection]
) -> RefreshCost:
    mine = connections[:_CALLERS]
    await asyncio.gather(*(_refreshed(parts, connection, 1) for connection in mine))  # they are cached
    events = await _events(parts, mine)
    usage, disk, temporal_disk = (
        processes.usage(),
        database_bytes(folder / FILE),
        database_bytes(folder / _TEMPORAL),
    )
    began = perf_counter()

    async def call(connection: Connection) -> int:
        generation = 2
        while perf_counter() < began + _REFRESH_S:
            generation = await _refreshed(parts, connection, generation)
        return generation - 2

    done = sum(await asyncio.gather(*map(call, mine)))
    seconds, now = perf_counter() - began, processes.usage()
    added = (await _events(parts, mine)) - events
    return RefreshCost(
        a_second=done / seconds,
        worker_cpu=(now[1].cpu - usage[1].cpu) / done,
        temporal_cpu=(now[2].cpu - usage[2].cpu) / done,
        disk=(database_bytes(folder / FILE) - disk) / done,
        temporal_disk=(database_bytes(folder / _TEMPORAL) - temporal_disk) / done,
        events=added.total() / done,
        actions=sum(number for name, number in added.items() if name in _ACTIONS) / done,
    )


async def _refreshed(parts: Platform, connection: Connection, seen: int) -> int:
    """The generation after a refresh for a caller who has seen this one."""
    ask = EnsureFresh(seen_generation=seen, context=_ASKED)
    fresh = await parts.link.ensure_fresh(connection.tenant, connection.id, ask, timeout=20)
    if fresh.generation <= seen:
        raise RuntimeError(f"not refreshed: {fresh}")
    return fresh.generation


async def _events(parts: Platform, connections: Sequence[Connection]) -> Counter[str]:
    """How many events of each type stand in the histories of their newest runs."""
    names = [connection_workflow_id(connection.tenant, connection.id) for connection in connections]
    histories = [await parts.link.history(name) for name in names]
    return Counter(event["eventType"] for history in histories for event in history)
