"""`make faults`: the table, the random run, fairness, fail-overs of the database, a lost region. Ends with 1
when anything was violated or lost, when a whole table left a point out, and when what it is for didn't
happen: nothing walked, leased or refreshed.

python -m tests.faults.harness --seconds 120 --seed 1 [--cases 2000] [--shard 1/4] [--jobs 2]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from statistics import median

from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.harness.random_run.plan import plan
from tests.faults.harness.random_run.run import run
from tests.faults.harness.report import run_report, table_report
from tests.faults.harness.table.case_run import Case
from tests.faults.harness.table.cases import Table
from tests.faults.harness.table.scenarios import SCENARIOS
from tests.faults.harness.table.table_run import TableResult, walk_table


def say(line: str) -> None:
    print(line, flush=True)


async def table(folder: Path, arguments: argparse.Namespace) -> TableResult:
    say("==> the table: every await point of the refresh and of the code exchange")
    number, of = arguments.shard

    def chosen(it: Table) -> list[Case]:
        piece = it.shard(number, of)
        return it.sample(arguments.cases, arguments.seed, piece) if arguments.cases else piece

    return await walk_table(
        folder,
        chosen,
        broken=tuple(arguments.broken),
        scenarios=[it for it in SCENARIOS if not arguments.scenario or it.name in arguments.scenario],
        jobs=arguments.jobs,
        short=arguments.short,
        say=say,
    )


async def main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="evergrant-faults-") as name:
        walked = await table(Path(name), arguments)
        say(table_report(walked))
        bad = walked.failed
        if arguments.seconds:
            bad |= await random_run(Path(name), arguments, walked.windows_ms)
            bad |= await fairness(Path(tempfile.mkdtemp(dir=name)))
            bad |= await fail_overs(arguments.seed)
            bad |= await regions(arguments.seed)
        return int(bad)


async def random_run(folder: Path, arguments: argparse.Namespace, windows_ms: list[float]) -> bool:
    say(f"==> the random run: seed {arguments.seed}, {arguments.seconds:.0f} s")
    for it in plan(arguments.seed, arguments.seconds):
        say(f"  {it.at:6.1f} s  {it.kind}")
    ran = await run(Path(tempfile.mkdtemp(dir=folder)), arguments.seconds, arguments.seed)
    say(run_report(ran, median(windows_ms) if windows_ms else None))
    return ran.bad


async def fairness(folder: Path) -> bool:
    """In a process of its own: it is kept to one core, and measures."""
    say("==> fairness: what one tenant's trouble costs another")
    command = (sys.executable, "-m", "tests.faults.fairness", "--folder", str(folder))
    return await (await asyncio.create_subprocess_exec(*command)).wait() != 0


async def fail_overs(seed: int) -> bool:
    """In a process of its own: as root it has a network of its own."""
    say("==> fail-overs: the database's primary fails, and its standby is promoted")
    command = (sys.executable, "-m", "tests.faults.failover", "--seed", str(seed))
    return await (await asyncio.create_subprocess_exec(*command)).wait() != 0


async def regions(seed: int) -> bool:
    """With databases and Temporals of its own."""
    say("==> regions: one is lost, the other takes over")
    command = (sys.executable, "-m", "tests.faults.region", "--seed", str(seed))
    return await (await asyncio.create_subprocess_exec(*command)).wait() != 0


def piece(text: str) -> tuple[int, int]:
    """`2/4`: the second of four."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError("a piece of the table is given as NUMBER/OF, as 1/4")
    return int(number), int(of)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="of the random run; 0: the table alone")
    parser.add_argument("--seed", type=int, default=1, help="of the plan of faults, and of the sample")
    parser.add_argument("--cases", type=int, default=0, help="walk so many of the table; 0: all")
    parser.add_argument("--shard", type=piece, default=(1, 1), help="1/4: the first quarter of the table")
    parser.add_argument("--jobs", type=int, default=1, help="fork servers at once, twelve cases each")
    parser.add_argument(
        "--short", action="store_true", help="most scenarios for their strictest rotation only"
    )
    parser.add_argument("--scenario", action="append", help="one of the table's, by its name; default: all")
    parser.add_argument("--broken", action="append", default=[], help="a build that is broken on purpose")
    return parser.parse_args()


if __name__ == "__main__":
    leftovers.watch()
    status = asyncio.run(main(arguments()))
    sys.stdout.flush()
    exit_process(status)
