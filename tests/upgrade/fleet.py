"""Two APIs behind a balancer, two workers and a gateway, each a process of the code it is started with."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.databases import postgres
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.docker import answers
from tests.fakes.ports import free_port
from tests.fakes.temporal import TemporalServer
from tests.upgrade.balancer import Balancer

WORKERS, APIS, GATEWAY = ("worker-1", "worker-2"), ("api-1", "api-2"), "gateway"
ALL = (*WORKERS, GATEWAY, *APIS)  # in the order of an upgrade
COMMANDS = {"worker": "worker", "api": "serve", "gateway": "gateway"}
_TO_STOP_S = 150  # what docs/guide/operations.md gives a worker
_ROLES = ("evergrant", "evergrant_worker", "evergrant_api", "evergrant_gateway")


def role_of(name: str) -> str:
    return name.partition("-")[0]


@dataclass
class Fleet:
    """The processes, and the hands that replace them."""

    folder: Path
    temporal: TemporalServer
    balancer: Balancer
    allow: str
    ports: dict[str, int]
    socket: str
    children: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    stops_s: list[float] = field(default_factory=list)  # how long each took to end
    problems: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.balancer.port}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[GATEWAY]}"

    def environment(self, tree: Path, name: str) -> dict[str, str]:
        """What a process of this code has, or a command of the database's owner (`owner`)."""
        role = role_of(name)
        database_role = "evergrant" if role == "owner" else f"evergrant_{role}"
        data = self.folder / name
        data.mkdir(mode=0o700, exist_ok=True)
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("EVERGRANT_", "OTEL_"))
        }
        return {
            **kept,
            "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'clients/python/src'}",
            "PYTHONUNBUFFERED": "1",
            "EVERGRANT_DATA_DIR": str(data),
            "EVERGRANT_KEY_FILE": str(self.folder / f"{'worker' if role == 'owner' else role}-keys.json"),
            "EVERGRANT_DATABASE_URL": f"postgresql+asyncpg://{database_role}@/evergrant?host={self.socket}",
            "EVERGRANT_PORT": str(self.ports.get(name, 0) or free_port()),
            "EVERGRANT_GATEWAY_PORT": str(self.ports[GATEWAY]),
            "EVERGRANT_METRICS_PORT": str(self.ports[name] if role == "worker" else free_port()),
            "EVERGRANT_PUBLIC_URL": self.url,
            "EVERGRANT_TEMPORAL_ADDRESS": self.temporal.address,
            "EVERGRANT_EGRESS_ALLOW": self.allow,
            "EVERGRANT_ALLOW_UNBOUND_CONSENT": "true",
        }

    async def command(self, tree: Path, *words: str, status: int | None = 0) -> str:
        """Run a command of this code as the owner; what it printed. Raises RuntimeError for another
        status, unless any will do (None)."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "evergrant_server", *words, cwd=tree, env=self.environment(tree, "owner"),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await child.communicate()
        if status not in (None, child.returncode):
            raise RuntimeError(
                f"{' '.join(words)} ended with {child.returncode}:\n{(errors + output).decode()}"
            )
        return output.decode()

    async def upgrade(self, tree: Path) -> str:
        """The command of the page, with the roles; what it said of the schema."""
        roles = [f"--{role}-role=evergrant_{role}" for role in COMMANDS]
        return (await self.command(tree, "db", "upgrade", *roles)).splitlines()[0]

    async def replace(self, name: str, tree: Path) -> None:
        """Stop it as an orchestrator does, and start it with this code."""
        role = role_of(name)
        if name in self.children:
            if role == "api":
                await self.balancer.drain(name)
            await self._stop(name)
        await self._start(name, tree)
        if role == "api":
            self.balancer.add(name, self.ports[name])

    async def end(self) -> None:
        await asyncio.gather(*(self._stop(name) for name in list(self.children)))

    async def _start(self, name: str, tree: Path) -> None:
        with self.log(name).open("ab") as log:
            self.children[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "evergrant_server", COMMANDS[role_of(name)], cwd=tree,
                env=self.environment(tree, name), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(2 * PATIENCE_S):
            while not await answers(self.ports[name]):
                if self.children[name].returncode is not None:
                    raise RuntimeError(f"{name} ended:\n{self.log(name).read_text(errors='replace')[-3000:]}")
                await asyncio.sleep(0.05)

    async def _stop(self, name: str) -> None:
        child, began = self.children.pop(name), time.monotonic()
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.wait_for(child.wait(), _TO_STOP_S)
        except TimeoutError:
            child.kill()
            status = await child.wait()
        self.stops_s.append(time.monotonic() - began)
        if status:
            self.problems.append(f"{name} ended with {status}")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@asynccontextmanager
async def fleet(folder: Path, tree: Path, allow: str) -> AsyncIterator[Fleet]:
    """Everything running with this code; ends every process that it started."""
    server, balancer = postgres(), Balancer()
    await server.seats(200)
    await server.admin(
        *(f"CREATE ROLE {role} LOGIN" for role in _ROLES), "CREATE DATABASE evergrant OWNER evergrant"
    )
    socket = server.url("evergrant").partition("?host=")[2]
    (folder / "temporal").mkdir()
    temporal = await TemporalServer.start(folder / "temporal")
    await balancer.start(free_port())
    here = Fleet(folder, temporal, balancer, allow, {name: free_port() for name in ALL}, socket)
    try:
        await here.command(tree, "keys", "create")
        for role in ("api", "gateway"):
            await here.command(tree, "keys", f"export-{role}", str(folder / f"{role}-keys.json"))
        await here.upgrade(tree)
        for name in ALL:
            await here.replace(name, tree)
        yield here
    finally:
        await here.end()
        await balancer.stop()
        await temporal.stop()
        await server.drop(server.url("evergrant"))
        await server.admin(*(f"DROP ROLE {role}" for role in _ROLES))
