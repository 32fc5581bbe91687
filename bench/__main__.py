"""`python -m bench [PART...] [--quick] [--seconds N] [--write]`: the measurements, one after the other.

Without a PART every measurement is made, and a picture of them drawn. `--seconds` is for each side of each
measurement; the default makes a run of under five minutes. `--quick` does a few hundred operations of each
kind, to see that everything runs. `--write` puts the tables into docs/benchmarks.md, the picture beside it.

`python -m bench capacity` measures what connections cost on this machine: docs/capacity.md; `python -m bench
plan` computes what millions of them need: docs/scale.md.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from platform import python_version

from bench import disabling, gateway, greedy, imports, leases, ledger, openbao, refreshes, report
from bench.bounds import Bounds
from bench.capacity import command, plan
from bench.gateway import CallRate
from bench.leases import LeaseRate
from bench.picture import draw
from bench.processes import Generator, load_generator, postgresql, sqlite
from bench.refreshes import RefreshRate
from evergrant_server.checkout import ROOT
from evergrant_server.process import exit_process
from examples.demo.interruption import run_interruptible

PAGE, PICTURE = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "bench.svg"
PARTS = ("leases", "gateway", "disabled", "refreshes", "imports")
_FOLDERS = ("sqlite", "postgresql", "gateway", "disabled", "refreshes", "imports", "imports-postgresql")
_SECONDS = 4.0
_MOST_SECONDS = 12.0
_GRANTS, _VERIFIED = 300, 100  # of an import


@dataclass
class _Figures:
    """What the picture shows."""

    leases: list[LeaseRate] = field(default_factory=list)
    calls: list[CallRate] = field(default_factory=list)
    refreshes: RefreshRate | None = None


class _Shown:
    """What was printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, *lines: str) -> None:
        self.lines += lines
        print(*lines, sep="\n", flush=True)


async def run(folder: Path, bounds: Bounds, parts: Sequence[str], picture: Path | None, write: bool) -> int:
    """Run the measurements. Returns the exit status."""
    machine = f"{os.cpu_count()} cores, Python {python_version()}"
    note = f"{machine}; load before: {_load()}; {bounds.seconds:g} s for each side"
    shown = _Shown()
    shown.print(f"One run: {note}.", "")
    figures = _Figures()
    async with load_generator() as generator:
        if "leases" in parts:
            figures.leases = await _leases(folder, generator, bounds, shown)
        if "gateway" in parts:
            figures.calls, streams = await gateway.measure(folder / "gateway", generator, bounds)
            shown.print(*report.calls(figures.calls), *report.streams(streams))
    if "disabled" in parts:
        async with postgresql() as empty_database:
            stopped = await disabling.measure(folder / "disabled", await empty_database(), bounds)
        shown.print(*report.disabled(stopped))
    if "refreshes" in parts:
        figures.refreshes = await refreshes.measure(folder / "refreshes", bounds)
        shown.print(*report.refreshes(figures.refreshes), "")
    if "imports" in parts:
        shown.print(*report.imports(await _imports(folder, bounds)))
    shown.print(f"Load after: {_load()}.")
    if write:
        report.write(PAGE, shown.lines)
        picture = picture or PICTURE
    if picture is not None and (figures.leases or figures.calls or figures.refreshes):
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text(draw(figures.leases, figures.refreshes, figures.calls, f"One run, {note}."))
        print(f"picture: {picture}")
    return 0


async def _leases(folder: Path, generator: Generator, bounds: Bounds, shown: _Shown) -> list[LeaseRate]:
    """Leases on both databases, an app's neighbour, and the ledger alone."""
    async with (
        postgresql() as empty_database,
        openbao.running_openbao(folder / "openbao", leases.CONNECTIONS) as vault,
    ):
        if vault is None:
            shown.print(openbao.MISSING, "")
        where = folder / "sqlite"
        async with leases.two_servers(where, sqlite(where), generator) as (ready, bare_port):
            rates = await leases.measure("SQLite", ready, bare_port, generator, bounds, vault)
            neighbours = await greedy.measure(ready, bare_port, generator, bounds)
        records = await ledger.measure("SQLite", ready, bounds)
        where, url = folder / "postgresql", await empty_database()
        async with leases.two_servers(where, url, generator) as (ready, bare_port):
            rates += await leases.measure("PostgreSQL", ready, bare_port, generator, bounds, vault)
        records += await ledger.measure("PostgreSQL", ready, bounds)
    shown.print(*report.leases(rates), *report.audit(records, rates), *report.neighbours(neighbours))
    return rates


async def _imports(folder: Path, bounds: Bounds) -> list[imports.ImportRate]:
    grants, verified = min(_GRANTS, bounds.most), min(_VERIFIED, bounds.most)
    where = folder / "imports"
    rates = [await imports.measure("SQLite", where, sqlite(where), grants, verified)]
    where = folder / "imports-postgresql"
    async with postgresql() as empty_database:
        url = await empty_database()
        return [*rates, await imports.measure("PostgreSQL", where, url, grants, verified)]


def _load() -> str:
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def main() -> int:
    if sys.argv[1:2] == ["plan"]:
        return plan.main(sys.argv[2:])
    if sys.argv[1:2] == ["capacity"]:
        return command.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a few hundred operations of each kind")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help=f"at most {_MOST_SECONDS:.0f}")
    parser.add_argument("--picture", type=Path, help="where to draw it (SVG)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    if options.write and options.parts:
        parser.error("--write: the page shows one whole run")
    if not 0 < options.seconds <= _MOST_SECONDS:
        parser.error(f"--seconds: more than 0, at most {_MOST_SECONDS:.0f}")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: use {', '.join(PARTS)}")
    bounds = Bounds.quick() if options.quick else Bounds(options.seconds)
    with tempfile.TemporaryDirectory(prefix="evergrant-bench-") as name:
        folder = Path(name)
        for part in _FOLDERS:
            (folder / part).mkdir()
        return run_interruptible(run(folder, bounds, options.parts or PARTS, options.picture, options.write))


if __name__ == "__main__":
    exit_process(main())
