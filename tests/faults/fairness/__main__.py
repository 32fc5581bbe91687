"""`python -m tests.faults.fairness`: the third part of `make faults` alone. Ends with 1 for a violation."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.fairness.run import report, run
from tests.faults.fairness.troubles import Sizes


def say(text: str) -> None:
    print(text, flush=True)


async def main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="evergrant-fairness-", dir=arguments.folder) as name:
        sizes = Sizes(hot=arguments.hot)
        result = await run(
            Path(name),
            seconds=arguments.seconds,
            sizes=sizes,
            say=say,
            only=arguments.only or [""],
        )
    say(report(result))
    return int(bool(result.wrongs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--only", action="append", help="the troubles with this word; default: all")
    parser.add_argument(
        "--hot", type=int, default=2000, help="connections that are due while Temporal is away"
    )
    parser.add_argument("--folder", type=Path, help="where its data may be; default: the system's")
    leftovers.watch()
    status = asyncio.run(main(parser.parse_args()))
    sys.stdout.flush()
    exit_process(status)
