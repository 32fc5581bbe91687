"""`python -m tests.faults.region`: a region is lost under load, the other one is promoted, one row a seed.

Ends with 1 for a lost connection where the provider has a grace, a record that was waited for and is missing,
or a lease of the old region after it came back.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.region.drill import HEAD, Case, drill, row

_ENDS, _DURABILITIES = ("kill", "pause"), ("local", "region")


async def main(arguments: argparse.Namespace) -> int:
    wrong = 0
    print(HEAD, flush=True)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        case = Case(
            seed,
            arguments.connections,
            load_s=arguments.seconds,
            leasing=arguments.leasing,
            refreshing=arguments.refreshing,
            end=arguments.end or _ENDS[seed % 2],
            rotation=arguments.rotation,
            durability=arguments.durability or _DURABILITIES[seed // 2 % 2],
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
    parser.add_argument("--durability", choices=_DURABILITIES, help="of leases' records; default: by turns")
    leftovers.watch()
    status = asyncio.run(main(parser.parse_args()))
    sys.stdout.flush()
    exit_process(status)
