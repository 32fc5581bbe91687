"""A server's command run with one thing wrong: what it says, its status, and what it left behind."""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "evergrant_server")
_LIMIT_S = 45


@dataclass(frozen=True)
class Mistake:
    """One row of the table. `says` names the setting or file, and the repair; `-` writes nothing."""

    name: str
    command: str
    status: int
    says: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    python: tuple[str, ...] = ()  # options of Python itself
    cwd: Path = ROOT
    wrong: str = ""  # for `doctor`: the one check that has to fail


@dataclass(frozen=True)
class Told:
    status: int
    out: str
    err: str
    before: frozenset[str]
    after: frozenset[str]


async def carried_out(mistake: Mistake, folder: Path) -> Told:
    """Run it with `folder` as its data folder, unless the mistake says otherwise."""
    inherited = {
        name: it for name, it in os.environ.items() if not name.startswith(("EVERGRANT_", "TEMPORAL_"))
    }
    env = {**inherited, "EVERGRANT_DATA_DIR": str(folder), **mistake.env}
    before = _files(folder)
    child = await asyncio.create_subprocess_exec(
        sys.executable, *mistake.python, *COMMAND, *mistake.command.split(), cwd=mistake.cwd, env=env,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(child.communicate(), _LIMIT_S)
    except TimeoutError:
        child.kill()
        out, err = await child.communicate()
        err += b"\n(it went on instead of refusing)"
    assert child.returncode is not None
    return Told(child.returncode, out.decode(), err.decode(), before, _files(folder))


def _files(folder: Path) -> frozenset[str]:
    """What is there, but for what any start may leave: SQLite's companions, a worker's lock."""
    return frozenset(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm")) and "journals" not in path.parts
    )
