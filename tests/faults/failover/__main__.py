"""`python -m tests.faults.failover`: the database fails over under load, with each kind of replication.

Ends with 1 when leases aren't back within ten seconds of a promotion, when a replaced primary has written,
and, with synchronous replication, when a connection, a token or a record of an acknowledged lease was lost.

The proof: `--seeds 10`. As root it also cuts servers off, in network namespaces.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.failover.network import enter_own_network
from tests.faults.failover.place import Size
from tests.faults.failover.run import Result, prove

_BEGAN = time.monotonic()
_HEAD = "| fail-over | leases again | refreshes again | leases before | records missing | rows of the split |"


def say(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:6.1f} {text}", flush=True)


def report(result: Result) -> str:
    """The table of one proof, in Markdown."""
    kind = "synchronous" if result.synchronous else "asynchronous"
    rows = [
        f"| {each.trouble} | {_seconds(each.first_lease_s)} | {_seconds(each.first_refresh_s)} |"
        f" {each.leases} | {each.missing} | {each.replaced_writes} |"
        for each in result.fail_overs
    ]
    notes = result.notes
    answers = ", ".join(f"{name}: {number}" for name, number in sorted(notes.answers.items()))
    return "\n".join(
        [
            f"==> {kind} replication, {len(result.fail_overs)} fail-overs",
            _HEAD,
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            f"leases {len(notes.leases)}, refreshes {result.refreshes} with {result.uses} calls;"
            f" answered otherwise: {answers or 'none'}; cut {notes.cut}",
            f"connections lost {len(result.lost)}, tokens sent twice {result.double_sends},"
            f" records missing {sum(each.missing for each in result.fail_overs)}",
        ]
    )


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f} s"


async def main(arguments: argparse.Namespace, networks: bool) -> int:
    if not networks:
        say("without root and network namespaces no server is cut off: kill and pause alone")
    size = Size(arguments.leasing, arguments.refreshing, arguments.pause, arguments.seed)
    wrong: list[str] = []
    for synchronous in (True, False):
        with tempfile.TemporaryDirectory(prefix="evergrant-failover-") as name:
            result = await prove(
                Path(name), size, arguments.seeds, synchronous=synchronous, networks=networks, say=say
            )
        print(report(result), flush=True)
        wrong += result.wrong
    for each in wrong[:50]:
        say(f"WRONG: {each}")
    say(f"{len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.failover", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="fail-overs with each kind of replication")
    parser.add_argument("--leasing", type=int, default=200, help="callers that lease")
    parser.add_argument("--refreshing", type=int, default=16, help="connections that are refreshed")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds of a caller between two leases")
    parser.add_argument("--seed", type=int, default=1, help="of troubles and pauses")
    given = parser.parse_args()
    has_networks = enter_own_network()
    leftovers.watch()
    status = asyncio.run(main(given, has_networks))
    sys.stdout.flush()
    exit_process(status)
