"""`python -m bench [--quick] [--seconds N]`: every measurement, one after the other, then exit.

`--seconds` is for each side of each measurement; the default makes a run of three to four minutes.
`--quick` does a few hundred operations of each kind, to see that everything runs.
"""

import argparse
import os
import tempfile
from pathlib import Path

from bench import disabling, gateway, greedy, leases, ledger, refreshes, report
from bench.bounds import Bounds
from bench.processes import load_generator, postgresql, sqlite
from evergrant_server.process import exit_process
from examples.demo.interruption import run_interruptible

PARTS = ("sqlite", "postgresql", "disabled", "refreshes", "gateway")
_SECONDS = 6.0
_MOST_SECONDS = 12.0  # keeps a whole run under five minutes


async def run(folder: Path, bounds: Bounds) -> int:
    """Run every measurement. Returns the exit status."""
    _print(f"{os.cpu_count()} cores; load before: {_load()}; {bounds.seconds} s for each side", "")
    async with load_generator() as generator, postgresql() as empty_database:
        where = folder / "sqlite"
        async with leases.two_servers(where, sqlite(where), generator) as (ready, bare_port):
            rates = await leases.measure("SQLite", ready, bare_port, generator, bounds)
            neighbours = await greedy.measure(ready, bare_port, generator, bounds)
        records = await ledger.measure("SQLite", ready, bounds)
        where, url = folder / "postgresql", await empty_database()
        async with leases.two_servers(where, url, generator) as (ready, bare_port):
            rates += await leases.measure("PostgreSQL", ready, bare_port, generator, bounds)
        records += await ledger.measure("PostgreSQL", ready, bounds)
        calls, streams = await gateway.measure(folder / "gateway", generator, bounds)
        stopped = await disabling.measure(folder / "disabled", await empty_database(), bounds)
    _print(*report.leases(rates))
    _print(*report.audit(records, rates))
    _print(*report.neighbours(neighbours))
    _print(*report.calls(calls), *report.streams(streams))
    _print(*report.disabled(stopped))
    _print(*report.refreshes(await refreshes.measure(folder / "refreshes", bounds)))
    _print(f"load after: {_load()}")
    return 0


def _load() -> str:
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def _print(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few hundred operations of each kind")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help=f"at most {_MOST_SECONDS:.0f}")
    given = parser.parse_args()
    if not 0 < given.seconds <= _MOST_SECONDS:
        parser.error(f"--seconds: more than 0, at most {_MOST_SECONDS:.0f}")
    bounds = Bounds.quick() if given.quick else Bounds(given.seconds)
    with tempfile.TemporaryDirectory(prefix="evergrant-bench-") as name:
        folder = Path(name)
        for part in PARTS:
            (folder / part).mkdir()
        return run_interruptible(run(folder, bounds))


if __name__ == "__main__":
    exit_process(main())
