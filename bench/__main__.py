"""`python -m bench [PART...] [--quick] [--seconds N]`: the measurements, one after the other, then exit.

Without a PART every measurement is made, and a picture of them drawn. `--seconds` is for each side of each
measurement; the default makes a run of under five minutes. `--quick` does a few hundred operations of each
kind, to see that everything runs.

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

from bench import disabling, gateway, greedy, imports, leases, ledger, openbao, refreshes, report
from bench.bounds import Bounds
from bench.capacity import command, plan
from bench.gateway import CallRate
from bench.leases import LeaseRate
from bench.picture import draw
from bench.processes import Generator, load_generator, postgresql, sqlite
from bench.refreshes import RefreshRate
from evergrant_server.process import exit_process
from examples.demo.interruption import run_interruptible

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


async def run(folder: Path, bounds: Bounds, parts: Sequence[str], picture: Path | None) -> int:
    """Run the measurements. Returns the exit status."""
    note = f"{os.cpu_count()} cores; load before: {_load()}; {bounds.seconds:g} s for each side"
    _print(note, "")
    figures = _Figures()
    async with load_generator() as generator:
        if "leases" in parts:
            figures.leases = await _leases(folder, generator, bounds)
        if "gateway" in parts:
            figures.calls, streams = await gateway.measure(folder / "gateway", generator, bounds)
            _print(*report.calls(figures.calls), *report.streams(streams))
    if "disabled" in parts:
        async with postgresql() as empty_database:
            stopped = await disabling.measure(folder / "disabled", await empty_database(), bounds)
        _print(*report.disabled(stopped))
    if "refreshes" in parts:
        figures.refreshes = await refreshes.measure(folder / "refreshes", bounds)
        _print(*report.refreshes(figures.refreshes), "")
    if "imports" in parts:
        _print(*report.imports(await _imports(folder, bounds)))
    _print(f"load after: {_load()}")
    if picture is not None and (figures.leases or figures.calls or figures.refreshes):
        _draw(picture, figures, f"One run, {note}.")
    return 0


def _draw(picture: Path, figures: _Figures, note: str) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(draw(figures.leases, figures.refreshes, figures.calls, note))
    _print(f"picture: {picture}")


async def _leases(folder: Path, generator: Generator, bounds: Bounds) -> list[LeaseRate]:
    """Leases on both databases, an app's neighbour, and the ledger alone."""
    async with (
        postgresql() as empty_database,
        openbao.running_openbao(folder / "openbao", leases.CONNECTIONS) as vault,
    ):
        if vault is None:
            _print(openbao.MISSING, "")
        where = folder / "sqlite"
        async with leases.two_servers(where, sqlite(where), generator) as (ready, bare_port):
            rates = await leases.measure("SQLite", ready, bare_port, generator, bounds, vault)
            neighbours = await greedy.measure(ready, bare_port, generator, bounds)
        records = await ledger.measure("SQLite", ready, bounds)
        where, url = folder / "postgresql", await empty_database()
        async with leases.two_servers(where, url, generator) as (ready, bare_port):
            rates += await leases.measure("PostgreSQL", ready, bare_port, generator, bounds, vault)
        records += await ledger.measure("PostgreSQL", ready, bounds)
    _print(*report.leases(rates), *report.audit(records, rates), *report.neighbours(neighbours))
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


def _print(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


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
    options = parser.parse_args()
    if not 0 < options.seconds <= _MOST_SECONDS:
        parser.error(f"--seconds: more than 0, at most {_MOST_SECONDS:.0f}")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: use {', '.join(PARTS)}")
    bounds = Bounds.quick() if options.quick else Bounds(options.seconds)
    with tempfile.TemporaryDirectory(prefix="evergrant-bench-") as name:
        folder = Path(name)
        for part in _FOLDERS:
            (folder / part).mkdir()
        return run_interruptible(run(folder, bounds, options.parts or PARTS, options.picture))


if __name__ == "__main__":
    exit_process(main())
