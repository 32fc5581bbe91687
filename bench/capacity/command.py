"""`python -m bench capacity [--large] [--write]`: what connections cost on this machine; a million computed.

In two to four minutes it measures 1,000 and 10,000 connections in the store, and 300 with a workflow;
`--large` measures 100,000 besides, and takes about ten minutes more. `--write` puts the tables into
docs/capacity.md.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from bench import report
from bench.capacity import running, stored
from bench.capacity.running import Running
from bench.capacity.stored import Stored
from bench.processes import load_generator
from bench.report import table
from evergrant_server.checkout import ROOT
from examples.demo.interruption import run_interruptible

PAGE = ROOT / "docs" / "capacity.md"
_SIZES, _LARGE = (1_000, 10_000), 100_000
_RUNS, _MOST_RUNS = 300, 20_000  # connections with a workflow
_KIB, _GIB = 1 << 10, 1 << 30
_LIFETIME_S, _DAY_S = 3_600, 86_400
_IN_USE = (0.01, 0.1, 1.0)


async def run(folder: Path, sizes: Sequence[int], runs: int, write: bool) -> int:
    """Measure, and print the tables. Returns the exit status."""
    began = perf_counter()
    load = os.getloadavg()[0]
    async with load_generator() as generator:
        rows = await stored.measure(folder / "store", sizes, generator)
    on_postgresql = await stored.disk_on_postgresql(folder / "postgresql", sizes[0])
    cost = await running.measure(folder / "running", runs)
    took = perf_counter() - began
    where = f"{os.cpu_count()} cores, load before {load:.1f}, {took:.0f} s"
    lines = tables(rows, on_postgresql, cost, where)
    print(*lines, sep="\n", flush=True)
    if write:
        report.write(PAGE, lines)
    return 0


def tables(rows: Sequence[Stored], on_postgresql: float, cost: Running, where: str) -> list[str]:
    return [
        f"Measured in one run: {where}.",
        "",
        *_stored_table(rows, on_postgresql),
        *_running_table(cost),
        *_computed_table(rows[-1], on_postgresql, cost),
    ]


def _stored_table(rows: Sequence[Stored], on_postgresql: float) -> list[str]:
    header = (
        "connections", "store, KiB each", "API, MiB", "after a lease of each", "leases/s, each its first",
        "audit, bytes a lease", "counts of a pass, ms", "a pass over all, CPU s", "its memory, MiB",
    )  # fmt: skip
    title = "What is stored (SQLite)"
    return [
        *table(
            title,
            header,
            [
                (
                    f"{row.connections:,}",
                    f"{row.disk / _KIB:.1f}",
                    f"{row.api_before:.0f}",
                    f"{row.api_after:.0f}",
                    f"{row.leases:,.0f}",
                    f"{row.lease_disk:,.0f}",
                    f"{row.counts_ms:.1f}",
                    f"{row.walk_cpu:.2f}",
                    f"{row.walk_memory:.1f}",
                )
                for row in rows
            ],
        ),
        f"On PostgreSQL a connection takes {on_postgresql / _KIB:.1f} KiB.",
        "",
    ]


def _running_table(row: Running) -> list[str]:
    cost = row.refresh
    idle = zip(("API", "worker", "Temporal"), row.idle_none, row.idle, strict=True)
    lines = [
        ("workflows started by reconcile, a second", f"{row.starts:.0f}"),
        ("Temporal's disk, KiB a connection", f"{row.temporal_disk / _KIB:.1f}"),
        ("Temporal's memory, KiB a connection", f"{row.temporal_memory * _KIB:.0f}"),
        ("worker's memory, KiB a connection in its cache", f"{row.worker_memory * _KIB:.0f}"),
        *(
            (
                f"idle, CPU seconds a minute: {name}, no connection and {row.runs}",
                f"{none:.2f} and {some:.2f}",
            )
            for name, none, some in idle
        ),
        ("refreshes a second, one worker", f"{cost.a_second:.0f}"),
        ("a refresh: CPU ms in worker and Temporal", _pair(cost.worker_cpu * 1000, cost.temporal_cpu * 1000)),
        ("a refresh: KiB in the store and in Temporal", _pair(cost.disk / _KIB, cost.temporal_disk / _KIB)),
        ("a refresh: events and actions of Temporal", _pair(cost.events, cost.actions)),
    ]
    return table(f"What runs: {row.runs} connections with a workflow", ("", "measured"), lines)


def _computed_table(row: Stored, on_postgresql: float, runs: Running) -> list[str]:
    """A million connections whose tokens live for an hour: a share of them in use all day."""
    million, cost = 1_000_000, runs.refresh
    lines: list[tuple[str, ...]] = []
    for share in _IN_USE:
        a_second = million * share / _LIFETIME_S
        a_day = a_second * _DAY_S
        lines.append(
            (
                f"{share:.0%}",
                f"{a_second:,.0f}",
                f"{a_second / cost.a_second:.1f}",
                f"{cost.actions * a_day / million:.1f}",
                f"{a_day * cost.disk / _GIB:.1f}",
                f"{a_day * cost.temporal_disk / _GIB:.1f}",
            )
        )
    header = (
        "in use", "refreshes/s", "workers of this machine", "Temporal's actions, a connection and day",
        "store, GiB more a day", "Temporal, GiB more a day",
    )  # fmt: skip
    walk = row.walk_cpu / row.connections * million
    counts = row.counts_ms / row.connections * million
    sizes = (row.disk, on_postgresql, runs.temporal_disk)
    in_sqlite, in_postgresql, in_temporal = (f"{million * size / _GIB:.1f} GiB" for size in sizes)
    return [
        *table("A million connections, computed; tokens that live for an hour", header, lines),
        f"At rest they take {in_sqlite} in SQLite or {in_postgresql} in PostgreSQL, and {in_temporal} in "
        f"Temporal. A pass of reconcile that looks at all takes {walk:.0f} s of CPU; one that finds the "
        f"counts equal {walk / 288:.1f} s, and {counts:.0f} ms for the counts.",
        "",
    ]


def _pair(first: float, second: float) -> str:
    return f"{first:.1f} and {second:.1f}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench capacity", description=__doc__)
    parser.add_argument("--large", action="store_true", help="100,000 connections besides")
    parser.add_argument("--runs", type=int, default=_RUNS, help=f"with a workflow, at most {_MOST_RUNS:,}")
    parser.add_argument("--quick", action="store_true", help="100 connections, to see that everything runs")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/capacity.md")
    options = parser.parse_args(arguments)
    if not 16 <= options.runs <= _MOST_RUNS:
        parser.error(f"--runs: 16 to {_MOST_RUNS:,}")
    sizes = (100,) if options.quick else (*_SIZES, _LARGE) if options.large else _SIZES
    with tempfile.TemporaryDirectory(prefix="evergrant-capacity-") as name:
        for part in ("store", "postgresql", "running"):
            (Path(name) / part).mkdir()
        return run_interruptible(run(Path(name), sizes, options.runs, options.write))
