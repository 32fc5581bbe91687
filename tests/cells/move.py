"""`python -m tests.cells.move`: move a tenant between two installations under leases. 1: it was wrong."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from evergrant_server.process import exit_process
from tests.cells.drill import Size, prove
from tests.fakes import leftovers


def say(text: str) -> None:
    print(text, flush=True)


async def main(arguments: argparse.Namespace) -> int:
    size = Size(
        arguments.connections,
        arguments.readers,
        postgresql=arguments.postgresql,
        kills=not arguments.no_kills,
    )
    with tempfile.TemporaryDirectory(prefix="evergrant-cells-", dir=arguments.folder) as name:
        wrong = await prove(Path(name), size, say)
    for line in wrong:
        say(f"WRONG: {line}")
    say(f"{len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--postgresql", action="store_true", help="on PostgreSQL; default: SQLite")
    parser.add_argument("--no-kills", action="store_true", help="end no process in between")
    parser.add_argument("--folder", type=Path, help="where its data may be; default: the system's")
    leftovers.watch()
    status = asyncio.run(main(parser.parse_args()))
    sys.stdout.flush()
    exit_process(status)
