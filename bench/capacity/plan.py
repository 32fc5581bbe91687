"""`python -m bench plan [--write]`: what 1M, 10M and 100M connections need, from measured costs.

Reads what docs/capacity.md has measured, measures the write-ahead log of a refresh on PostgreSQL in half a
minute, and computes cells, workers, Temporal's shards, databases and the bandwidth of replication. `--write`
puts the tables into docs/scale.md.
"""

import argparse
import asyncio
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

import asyncpg

from bench import installation, report
from bench.capacity.command import PAGE as MEASURED
from bench.processes import postgresql, python_module, running_process
from bench.report import table
from evergrant_server.checkout import ROOT
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.crypto.keyring import Role
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from examples.demo.interruption import run_interruptible
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

PAGE = ROOT / "docs" / "scale.md"
_CALLERS, _ROUNDS = 8, 10
_ASKED = RequestContext(by="app:pipeline")
_KIB, _GIB, _DAY_S = 1 << 10, 1 << 30, 86_400
_SIZES = (1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True)
class Costs:
    """What was measured: CPU in ms, sizes in KiB."""

    worker_ms: float
    temporal_ms: float
    store_kib: float
    temporal_kib: float
    refresh_store_kib: float
    refresh_temporal_kib: float
    lease_bytes: float
    walk_s: float  # CPU of a pass over a million

    @classmethod
    def read(cls, page: str) -> "Costs":
        """From the tables of docs/capacity.md. Raises ValueError for a page without one of them."""
        worker, runs = _numbers(page, r"a refresh: CPU ms in worker and Temporal +\| ([\d.]+) and ([\d.]+)")
        in_store, in_temporal = _numbers(
            page, r"a refresh: KiB in the store and in Temporal +\| ([\d.]+) and ([\d.]+)"
        )
        (store,) = _numbers(page, r"On PostgreSQL a connection takes ([\d.]+) KiB")
        (temporal,) = _numbers(page, r"Temporal's disk, KiB a connection +\| ([\d.]+)")
        (lease,) = _numbers(page, r"\| 10,000 +\|(?:[^|]+\|){4} ([\d.]+)")
        (walk,) = _numbers(page, r"looks at all takes ([\d.]+) s of CPU")
        return cls(worker, runs, store, temporal, in_store, in_temporal, lease, walk)


@dataclass(frozen=True)
class Assumed:
    """What was not measured: change it, and compute again."""

    cell: int = 5_000_000  # connections of one cell, at most
    in_use: float = 0.1  # the share that is refreshed, all day
    lifetime_s: float = 3_600  # of an access token
    leases: float = 12  # an hour and connection in use
    busy: float = 0.5  # of a core, so that a peak finds room
    persisted: int = 6  # writes of Temporal's history for a refresh, one after another
    commit_ms: float = 5  # of one of these
    shard_busy: float = 0.2  # of a shard's time, so that one hot shard has room


def _numbers(page: str, pattern: str) -> list[float]:
    found = re.search(pattern, page)
    if found is None:
        raise ValueError(f"docs/capacity.md has no {pattern!r}: run python -m bench capacity --write")
    return [float(text) for text in found.groups()]


async def wal_of_refresh(folder: Path) -> tuple[float, int]:
    """Bytes of PostgreSQL's write-ahead log for one refresh, and of how many refreshes that is the mean."""
    async with (
        postgresql() as empty_database,
        ScriptedProvider() as idp,
        running_temporal(folder) as temporal,
    ):
        url = await empty_database()
        ready = await installation.prepare(
            folder,
            url,
            free_port(),
            [idp.grant("read write") for _ in range(_CALLERS)],
            issuer=idp.issuer,
            client_secret=idp.client_secret,
            temporal_address=temporal.address,
            egress_allow=(idp.allowance,),
        )
        worker = python_module("evergrant_server worker", folder, env=settings_environment(ready.settings))
        async with open_platform(ready.settings, Role.OPERATOR) as parts:
            await prepare_namespace(parts.client, ready.settings.history_retention)
            async with running_process(worker, words="worker ready"):
                for connection in ready.connections:
                    await parts.reconciler.start_workflow(connection.tenant, connection.id)
                return await _wal(parts, ready, url)


async def _wal(parts: Platform, ready: installation.Installation, url: str) -> tuple[float, int]:
    host = url.partition("host=")[2]
    database = await asyncpg.connect(host=host, user="postgres", database=_database_of(url))
    seen = {connection.id: connection.generation for connection in ready.connections}

    async def refresh_all() -> None:
        async def one(connection: Connection) -> None:
            id = connection.id
            ask = EnsureFresh(seen_generation=seen[id], context=_ASKED)
            fresh = await parts.link.ensure_fresh(connection.tenant, connection.id, ask, timeout=60)
            seen[id] = fresh.generation

        await asyncio.gather(*(one(connection) for connection in ready.connections))

    try:
        await refresh_all()
        await database.execute("CHECKPOINT")
        for _ in range(2):  # whole pages are written after a checkpoint: not in what is counted
            await refresh_all()
        before = await database.fetchval("SELECT pg_current_wal_lsn()")
        for _ in range(_ROUNDS):
            await refresh_all()
        written = await database.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", before)
        number = _ROUNDS * len(seen)
        return float(written) / number, number
    finally:
        await database.close()


def _database_of(url: str) -> str:
    """The database's name in a URL of `bench.processes.postgresql`."""
    return url.partition("@/")[2].partition("?")[0]


def tables(costs: Costs, wal: float, refreshes: int, assumed: Assumed) -> list[str]:
    """The page's lines."""
    header = (
        "connections", "cells", "refreshes/s", "workers' cores", "Temporal's cores",
        "history shards of a cell", "leases/s", "replication, Mbit/s of a cell",
    )  # fmt: skip
    rows = [_row(number, costs, wal, assumed) for number in _SIZES]
    disks = [_disk(number, costs, assumed) for number in _SIZES]
    of_disk = (
        "connections", "store of a cell, GiB", "Temporal of a cell, GiB",
        "store and audit log, GiB more a day and cell", "a pass over a cell, CPU s",
    )  # fmt: skip
    return [
        f"Measured for this page: {wal / _KIB:.1f} KiB of PostgreSQL's write-ahead log for a refresh, the "
        f"mean of {refreshes}, some time after a checkpoint.",
        "",
        *table("Computed", header, rows),
        *table("Computed, on disk", of_disk, disks),
    ]


def _row(number: int, costs: Costs, wal: float, assumed: Assumed) -> tuple[str, ...]:
    cells = ceil(number / assumed.cell)
    a_second = number * assumed.in_use / assumed.lifetime_s
    leases = number * assumed.in_use * assumed.leases / 3_600
    of_cell = a_second / cells
    shard = assumed.shard_busy / (assumed.persisted * assumed.commit_ms / 1_000)  # refreshes a second of one
    shards = 2 ** ceil(log2(max(of_cell / shard, 1)))
    bytes_a_second = (a_second * wal + leases * costs.lease_bytes * 2) / cells
    return (
        f"{number:,}",
        f"{cells}",
        f"{a_second:,.0f}",
        f"{a_second * costs.worker_ms / 1_000 / assumed.busy:,.0f}",
        f"{a_second * costs.temporal_ms / 1_000 / assumed.busy:,.0f}",
        f"{shards}",
        f"{leases:,.0f}",
        f"{bytes_a_second * 8 / 1e6:.1f}",
    )


def _disk(number: int, costs: Costs, assumed: Assumed) -> tuple[str, ...]:
    cells = ceil(number / assumed.cell)
    each = number / cells
    refreshes = each * assumed.in_use / assumed.lifetime_s * _DAY_S
    leases = each * assumed.in_use * assumed.leases * 24
    more = refreshes * costs.refresh_store_kib * _KIB + leases * costs.lease_bytes
    return (
        f"{number:,}",
        f"{each * costs.store_kib * _KIB / _GIB:.0f}",
        f"{each * costs.temporal_kib * _KIB / _GIB:.0f}",
        f"{more / _GIB:.0f}",
        f"{costs.walk_s * each / 1e6:.0f}",
    )


async def run(folder: Path, assumed: Assumed, write: bool) -> int:
    """Measure, compute, and print. Returns the exit status."""
    costs = Costs.read(MEASURED.read_text())
    wal, refreshes = await wal_of_refresh(folder)
    lines = tables(costs, wal, refreshes, assumed)
    print(*lines, sep="\n", flush=True)
    if write:
        report.write(PAGE, lines)
    return 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench plan", description=__doc__)
    parser.add_argument("--cell", type=int, default=Assumed.cell, help="connections of one cell, at most")
    parser.add_argument("--in-use", type=float, default=Assumed.in_use, help="the share refreshed all day")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="evergrant-plan-") as name:
        assumed = Assumed(cell=options.cell, in_use=options.in_use)
        return run_interruptible(run(Path(name), assumed, options.write))
