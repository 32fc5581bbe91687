"""What connections cost that are stored: disk, the API's memory, leases, and the passes of reconcile."""

import tracemalloc
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter, process_time

from bench import installation
from bench.capacity.usage import database_bytes, pid_of, usage_of
from bench.installation import Installation, lease_request
from bench.processes import Generator, postgresql, python_module, running_process, sqlite
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.runs import RunningWorkflow
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter
from providers.definition.registry import Registry
from tests.fakes.ports import free_port

FILE = "evergrant.db"
_LEASE_S = 12.0  # at the most, for one lease of each connection
_MOST_LEASED = 10_000
_MIB = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One size of the store. Bytes are of one connection, memory is MiB, times are of one pass."""

    connections: int
    disk: float
    api_before: float
    api_after: float  # each has been leased once, the first ten thousand at the most
    leases: float
    lease_disk: float
    counts_ms: float  # of the comparison with which a pass begins
    walk_cpu: float  # of a pass that looks at all
    walk_memory: float


async def measure(folder: Path, sizes: Sequence[int], generator: Generator) -> list[Stored]:
    ready = await installation.prepare(folder, sqlite(folder), free_port(), [])
    empty, before, rows = database_bytes(folder / FILE), 0, list[Stored]()
    for size in sizes:
        await installation.populate(ready, range(before, size))
        before = size
        disk = (database_bytes(folder / FILE) - empty) / size
        rows.append(await _at_size(ready, folder, size, disk, generator))
    return rows


async def _at_size(ready: Installation, folder: Path, size: int, disk: float, generator: Generator) -> Stored:
    counts_ms, walk_cpu, walk_memory = await _pass(ready)
    api = python_module("evergrant_server serve", folder, env=settings_environment(ready.settings))
    bytes_before = database_bytes(folder / FILE)
    async with running_process(api, port=ready.settings.port):
        at_first = usage_of(pid_of(api)).memory
        leased = min(size, _MOST_LEASED)
        port, key = ready.settings.port, ready.key
        requests = [lease_request(port, key, f"user-{number:04}") for number in range(leased)]
        result = await generator.round(
            port=port, clients=16, seconds=_LEASE_S, most=leased, requests=requests
        )
        if result["refused"]:
            raise RuntimeError(f"a lease was refused: {result['sample'][:400]}")
        done = len(result["latencies"])
        memory = usage_of(pid_of(api)).memory
    lease_disk = (database_bytes(folder / FILE) - bytes_before) / done
    return Stored(
        connections=size,
        disk=disk,
        api_before=at_first,
        api_after=memory,
        leases=done / result["seconds"],
        lease_disk=lease_disk,
        counts_ms=counts_ms,
        walk_cpu=walk_cpu,
        walk_memory=walk_memory,
    )


class _AllRun(TemporalLink):
    """Temporal as a pass sees it when nothing is missing: the pass itself is measured, without its calls."""

    def __init__(self) -> None:
        self._started_at = datetime.now().astimezone()

    async def running_connections(self, workflows: Sequence[str]) -> dict[str, RunningWorkflow]:
        return {name: RunningWorkflow(self._started_at, LifecycleState.ACTIVE) for name in workflows}

    async def failing_workflows(self) -> AsyncIterator[str]:
        for workflow in ():
            yield workflow


async def _pass(ready: Installation) -> tuple[float, float, float]:
    """Milliseconds of the counts; CPU seconds and peak memory (MiB) of a pass that looks at all."""
    settings, clock = ready.settings, SystemClock()
    ring = KeyRing.open(settings.key_path, Role.WORKER)
    store = await Store.open(settings.database_url, ring, clock)
    try:
        link = _AllRun()
        starter = WorkflowStarter(store, link, ring, clock, Registry({}).refresh_rules)
        reconciler = Reconciler(store, link, starter, clock)
        began = perf_counter()
        async with store.read() as tx:
            await tx.connections.live_counts()
        counts_ms = (perf_counter() - began) * 1000
        cpu = process_time()
        await reconciler.reconcile_all(compare=False)
        cpu = process_time() - cpu
        tracemalloc.start()
        await reconciler.reconcile_all(compare=False)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    finally:
        await store.close()
    return counts_ms, cpu, peak / _MIB


async def disk_on_postgresql(folder: Path, size: int) -> float:
    """Bytes of a connection."""
    async with postgresql() as empty_database:
        ready = await installation.prepare(folder, await empty_database(), free_port(), [])
        before = await _database_size(ready)
        await installation.populate(ready, range(size))
        return (await _database_size(ready) - before) / size


async def _database_size(ready: Installation) -> int:
    ring = KeyRing.open(ready.settings.key_path, Role.WORKER)
    store = await Store.open(ready.settings.database_url, ring, SystemClock())
    try:
        async with store.read() as tx:
            query = "SELECT pg_database_size(current_database())"
            return int((await tx.connection.exec_driver_sql(query)).scalar_one())
    finally:
        await store.close()
