"""`python -m tests.faults.rotation`: rotations of keys under load. Ends with 1 for anything unreadable, any
lease that fails, and any old key that is left or was destroyed too early.

The large proof: `--rows 50000 --readers 200 --refreshing 16 --kills --database postgresql --service openbao`.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from bench.processes import postgresql, sqlite
from evergrant_server.core.key_rotation import RotationKind, RotationStep
from evergrant_server.crypto import ROOT_PURPOSES, KeyPurpose
from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.faults.rotation.place import SERVICES, Size
from tests.faults.rotation.run import KINDS, prove

_BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:6.1f} {text}", flush=True)


async def main(arguments: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="evergrant-rotation-", dir=arguments.folder)
        )
        url = sqlite(Path(name))
        if arguments.database == "postgresql":
            url = await (await stack.enter_async_context(postgresql()))()
        wrong = await prove(
            Path(name),
            url,
            Size(arguments.rows, arguments.readers, arguments.refreshing, arguments.pause, arguments.seed),
            service=arguments.service,
            kinds=[RotationKind(kind) for kind in arguments.kind] or KINDS,
            purposes=[KeyPurpose(purpose) for purpose in arguments.purpose] or ROOT_PURPOSES,
            seconds=arguments.seconds,
            kills=arguments.kills,
            steps=arguments.step,
            say=say,
        )
    for each in wrong[:50]:
        say(f"WRONG: {each}")
    say(f"{len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1200, help="keys, sealed values and authenticators")
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--refreshing", type=int, default=4, help="connections that are refreshed")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of a reader between two leases")
    parser.add_argument("--seconds", type=float, default=10, help="of load alone, before")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--service", choices=SERVICES, default="file", help="has the root keys")
    parser.add_argument("--kind", action="append", default=[], choices=[kind.value for kind in KINDS])
    parser.add_argument("--purpose", action="append", default=[], choices=[*ROOT_PURPOSES], help="of roots")
    parser.add_argument("--kills", action="store_true", help="a SIGKILL of each process in each step")
    parser.add_argument("--step", action="append", default=[], choices=[*RotationStep], help="of --kills")
    parser.add_argument("--folder", type=Path, help="where its data may be; default: the system's")
    leftovers.watch()
    status = asyncio.run(main(parser.parse_args()))
    sys.stdout.flush()
    exit_process(status)
