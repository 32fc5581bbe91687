"""`python -m tests.faults.campaign`: many subjects consent to another client. Ends with 1 if one is lost."""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.processes import postgresql, sqlite
from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.campaign.drill import prove


def say(text: str) -> None:
    print(text, flush=True)


async def main(arguments: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="evergrant-campaign-", dir=arguments.folder)
        name = stack.enter_context(folder)
        url = sqlite(Path(name))
        if arguments.postgresql:
            url = await (await stack.enter_async_context(postgresql()))()
        wrong = await prove(Path(name), url, connections=arguments.connections, say=say)
    for line in wrong[:50]:
        say(f"WRONG: {line}")
    say(f"{len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--postgresql", action="store_true", help="on PostgreSQL; default: SQLite")
    parser.add_argument("--folder", type=Path, help="where its data may be; default: the system's")
    leftovers.watch()
    status = asyncio.run(main(parser.parse_args()))
    sys.stdout.flush()
    exit_process(status)
