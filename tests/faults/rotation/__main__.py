"""`python -m tests.faults.rotation`: rotations of keys under load. Ends with 1 for anything unreadable.

The large proof: `--connections 10000 --readers 200 --refreshing 16 --kills`, which is 50,000 keys and values.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.processes import postgresql, sqlite
from evergrant_server.core.key_rotation import RotationKind
from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.rotation.run import KINDS, prove


def say(text: str) -> None:
    print(text, flush=True)


async def main(arguments: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="evergrant-rotation-", dir=arguments.folder)
        )
        url = sqlite(Path(name))
        if arguments.postgresql:
            url = await (await stack.enter_async_context(postgresql()))()
        result = await prove(
            Path(name),
            url,
            connections=arguments.connections,
            readers=arguments.readers,
            refreshing=arguments.refreshing,
            kills=arguments.kills,
            say=say,
            kinds=[RotationKind(kind) for kind in arguments.kind] or KINDS,
        )
    for wrong in result.wrong[:50]:
        say(f"WRONG: {wrong}")
    say(f"{len(result.wrong)} wrong")
    return int(bool(result.wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--refreshing", type=int, default=4)
    parser.add_argument("--kind", action="append", default=[], choices=[kind.value for kind in KINDS])
    parser.add_argument("--kills", action="store_true", help="SIGKILL of each process in each step")
    parser.add_argument("--postgresql", action="store_true", help="on PostgreSQL; default: SQLite")
    parser.add_argument("--folder", type=Path, help="where its data may be; default: the system's")
    leftovers.watch()
    status = asyncio.run(main(parser.parse_args()))
    sys.stdout.flush()
    exit_process(status)
