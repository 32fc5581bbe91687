"""`python -m tests.faults.region`: a region is lost under load, the other one is promoted, one row a seed.

Ends with 1 for a lost connection where the provider has a grace (of a region that is cut off and goes on
refreshing: for more of them than it says are at stake), a record that was waited for and is missing, or a
lease of the old region after the new one had leased. As root it also cuts the regions off from each
other, in network namespaces.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.failover.network import enter_own_network
from tests.faults.region.drill import HEAD, drill, row
from tests.faults.region.place import Case

_ENDS, _DURABILITIES = ("kill", "pause", "cut"), ("local", "region")


async def main(arguments: argparse.Namespace, networks: bool) -> int:
    wrong, ends = 0, _ENDS if networks else _ENDS[:-1]
    if not networks:
        print("without root and network namespaces no region is cut off: kill and pause alone")
    print(HEAD, flush=True)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        end = arguments.end or ends[seed % len(ends)]
        loses = arguments.rotation == "strict" or end == "cut"  # what it refreshes alone
        case = Case(
            seed,
            arguments.connections,
            load_s=arguments.seconds,
            leasing=arguments.leasing,
            refreshing=arguments.refreshing,
            end=end,
            rotation=arguments.rotation,
            away=arguments.away or ("stop" if loses else "continue"),
            durability=arguments.durability or _DURABILITIES[seed // len(ends) % 2],
        )
        with tempfile.TemporaryDirectory(prefix="evergrant-region-", ignore_cleanup_errors=True) as folder:
            outcome = await drill(Path(folder), case)
        print(row(case, outcome), flush=True)
        for each in outcome.wrong:
            print(f"     WRONG: {each}", flush=True)
        wrong += len(outcome.wrong)
    print(f"{wrong} wrong", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8, help="of load, until the region ends")
    parser.add_argument("--leasing", type=int, default=8, help="callers")
    parser.add_argument("--refreshing", type=int, default=4, help="callers")
    parser.add_argument("--end", choices=_ENDS, help="of the old region; default: by turns")
    parser.add_argument("--rotation", choices=("grace", "strict"), default="grace", help="of the provider")
    parser.add_argument(
        "--away",
        choices=("continue", "stop"),
        help="of refreshes while the other region is away; default: stop where they would be lost",
    )
    parser.add_argument("--durability", choices=_DURABILITIES, help="of leases' records; default: by turns")
    given = parser.parse_args()
    has_networks = enter_own_network()
    leftovers.watch()
    status = asyncio.run(main(given, has_networks))
    sys.stdout.flush()
    exit_process(status)
