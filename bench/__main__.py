"""`python -m bench [--quick] [--seconds N]`: every measurement, one after the other, then exit.

`--seconds` is for each side of each measurement; the default makes a run of three to four minutes.
`--quick` does a few hundred operations of each kind, to see that everything runs.
"""

import argparse
import os
import tempfile
from pathlib import Path

from bench import disabling, greedy, leases, ledger, refreshes, report
from bench.bounds import Bounds
from bench.disabling import Disabling
from bench.leases import LeaseRate
from bench.ledger import LedgerRate
from bench.processes import Generator, load_generator, postgresql, sqlite
from evergrant_server.process_exit import exit_process
from examples.demo.interruption import run_interruptible

PARTS = ("sqlite", "postgresql", "greedy", "app", "tenant", "refreshes")
_SECONDS = 6.0
_MOST_SECONDS = 12.0  # keeps a whole run under five minutes


async def run(folder: Path, bounds: Bounds) -> int:
    """Run every measurement. Returns the exit status."""
    _print(f"{os.cpu_count()} cores; load before: {_load()}; {bounds.seconds} s for each side", "")
    async with load_generator() as generator:
        rates, records = await _on("SQLite", sqlite(folder / "sqlite"), folder / "sqlite", generator, bounds)
        async with postgresql() as url:
            more = await _on("PostgreSQL", url, folder / "postgresql", generator, bounds)
        servers = leases.two_servers(folder / "greedy", sqlite(folder / "greedy"), generator)
        async with servers as (ready, bare_port):
            neighbours = await greedy.measure(ready, bare_port, generator, bounds)
    rates, records = rates + more[0], records + more[1]
    _print(*report.leases(rates))
    _print(*report.audit(records, rates))
    _print(*report.neighbours(neighbours))
    stopped = [await _disabled(folder / what, bounds, what) for what in ("app", "tenant")]
    _print(*report.disabled(stopped))
    _print(*report.refreshes(await refreshes.measure(folder / "refreshes", bounds)))
    _print(f"load after: {_load()}")
    return 0


async def _on(
    store: str, url: str, folder: Path, generator: Generator, bounds: Bounds
) -> tuple[list[LeaseRate], list[LedgerRate]]:
    """The measurements on one of the two databases."""
    async with leases.two_servers(folder, url, generator) as (ready, bare_port):
        rates = await leases.measure(store, ready, bare_port, generator, bounds)
    return rates, await ledger.measure(store, ready, bounds)


async def _disabled(folder: Path, bounds: Bounds, what: str) -> Disabling:
    async with postgresql() as url:
        return await disabling.measure(folder, url, bounds, what)


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
