"""A server's command run with one thing wrong: what it says, its status, and what it left behind."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.platform.compose import ROOT
from tests.fakes.platform.warm import WarmProcess
from tests.fakes.ports import free_port

COMMAND = ("-m", "evergrant_server")
_LIMIT_S = 180  # a command that goes on instead of refusing, not one that is slow


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


# each is found before anything is opened
IN_SETTINGS = [
    Mistake("an unknown log level", "serve", 2, ("EVERGRANT_LOG_LEVEL", "DEBUG, INFO"),
            env={"EVERGRANT_LOG_LEVEL": "loud"}),
    Mistake("a port that is no number", "serve", 2, ("EVERGRANT_PORT", "integer"),
            env={"EVERGRANT_PORT": "http"}),
    Mistake("a port out of range", "serve --port 99999", 2, ("EVERGRANT_PORT", "65535")),
    Mistake("a flag's value of the wrong kind", "serve --port http", 2, ("--port", "serve --help")),
    Mistake("an unknown flag", "serve --hots 127.0.0.1", 2, ("--hots", "--host", "serve --help")),
    Mistake("an unknown command", "sevre", 2, ("sevre", "serve", "--help")),
    Mistake("a missing argument", "keys rotate", 2, ("--purpose", "keys rotate --help")),
    Mistake("a misspelt setting", "db current", 2,
            ("EVERGRANT_DATABSE_URL", "did you mean EVERGRANT_DATABASE_URL"),
            env={"EVERGRANT_DATABSE_URL": "postgresql+asyncpg://evergrant@db/evergrant"}),
    Mistake("plain http on a public host", "serve", 2, ("EVERGRANT_PUBLIC_URL", "https://auth.example.com"),
            env={"EVERGRANT_PUBLIC_URL": "http://auth.example.com"}),
    Mistake("a public URL with a path", "serve", 2, ("EVERGRANT_PUBLIC_URL", "without a path"),
            env={"EVERGRANT_PUBLIC_URL": "https://example.com/evergrant"}),
    Mistake("an egress allowance without a port", "worker", 2,
            ("EVERGRANT_EGRESS_ALLOW", "10.0.0.7", "host:port"),
            env={"EVERGRANT_EGRESS_ALLOW": "10.0.0.7"}),
    Mistake("a database of another kind", "db upgrade", 2, ("EVERGRANT_DATABASE_URL", "postgresql://"),
            env={"EVERGRANT_DATABASE_URL": "mysql://evergrant@db/evergrant"}),
    Mistake("a Temporal address that is a URL", "worker", 2, ("EVERGRANT_TEMPORAL_ADDRESS", "host:port"),
            env={"EVERGRANT_TEMPORAL_ADDRESS": "https://temporal:7233"}),
    Mistake("a duration in words", "serve", 2, ("EVERGRANT_HISTORY_RETENTION", "seconds", "P365D"),
            env={"EVERGRANT_HISTORY_RETENTION": "a year"}),
    Mistake("a password file that isn't there", "db upgrade", 2,
            ("EVERGRANT_DATABASE_PASSWORD_FILE", "/nowhere"),
            env={"EVERGRANT_DATABASE_PASSWORD_FILE": "/nowhere",
                 "EVERGRANT_DATABASE_URL": "postgresql+asyncpg://evergrant@db/evergrant"}),
]  # fmt: skip


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
    # no port of the defaults: another Evergrant may run on this machine
    env = {**inherited, "EVERGRANT_DATA_DIR": str(folder), "EVERGRANT_PORT": str(free_port())}
    if "EVERGRANT_TEMPORAL_PROFILE" not in mistake.env:
        env["EVERGRANT_TEMPORAL_ADDRESS"] = f"127.0.0.1:{free_port()}"
    env |= mistake.env
    before = _files(folder)
    run = _real if mistake.python or mistake.cwd != ROOT else _warm
    status, out, err = await run(mistake, env)
    return Told(status, out, err, before, _files(folder))


async def _warm(mistake: Mistake, env: Mapping[str, str]) -> tuple[int, str, str]:
    with tempfile.TemporaryDirectory(prefix="evergrant-") as name:
        out, err = Path(name) / "out", Path(name) / "err"
        child = await WarmProcess.start(mistake.command.split(), env, out, err)
        late = await _is_late(child.pid, child.wait())
        return await child.wait(), out.read_text(), err.read_text() + late


async def _real(mistake: Mistake, env: Mapping[str, str]) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, *mistake.python, *COMMAND, *mistake.command.split(), cwd=mistake.cwd, env=dict(env),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    ends = asyncio.create_task(child.communicate())
    late = await _is_late(child.pid, asyncio.shield(ends))
    out, err = await ends
    return await child.wait(), out.decode(), err.decode() + late


async def _is_late(pid: int, ends: Awaitable[object]) -> str:
    """Words for a command that went on; it is killed, with the workers of a server that has started."""
    try:
        await asyncio.wait_for(ends, _LIMIT_S)
    except TimeoutError:
        os.killpg(pid, signal.SIGKILL)
        return "\n(it went on instead of refusing)"
    return ""


def _files(folder: Path) -> frozenset[str]:
    """What is there, but for what any start may leave: SQLite's companions, a worker's lock."""
    return frozenset(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm")) and "journals" not in path.parts
    )
