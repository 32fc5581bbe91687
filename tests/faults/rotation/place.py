"""An installation of real processes: two APIs, two workers, a database, Temporal; and its load."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from bench import installation
from bench.load import HOST
from bench.processes import python_module, running_process
from evergrant_server.cli.process import ChildProcess
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.crypto.keyring import Role
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

_CONTEXT = RequestContext(by="app:pipeline")
_TIMEOUT_S = 30.0


@dataclass
class Counts:
    """What readers and refreshing callers have seen."""

    leases: int = 0
    refused: int = 0
    cut: int = 0  # by a SIGKILL of the API that was asked: sent again to the other one
    refreshes: int = 0
    late: int = 0  # refreshes that took longer than their caller waited
    wrong: list[str] = field(default_factory=list)


class Member:
    """A process that is killed and started again."""

    def __init__(self, process: ChildProcess, *, port: int = 0, words: str = "") -> None:
        self.process, self._port, self._words = process, port, words
        self._stack: Any = None

    @property
    def name(self) -> str:
        return self.process.name

    async def start(self) -> None:
        self._stack = running_process(self.process, port=self._port, words=self._words)
        await self._stack.__aenter__()

    async def stop(self) -> None:
        await self._stack.__aexit__(None, None, None)

    def signal(self, number: signal.Signals) -> None:
        os.killpg(int(self.process.pid_file.read_text().split()[0]), number)

    async def kill(self) -> None:
        """SIGKILL it, and start it again."""
        self.signal(signal.SIGKILL)
        await self.process.wait()
        await self.start()


@dataclass
class Place:
    """The installation, and its load."""

    parts: Platform
    ready: installation.Installation
    connections: tuple[Connection, ...]
    refreshing: tuple[Connection, ...]
    ports: tuple[int, ...]
    members: list[Member]
    counts: Counts = field(default_factory=Counts)

    async def admin(self, method: str, path: str, **sent: Any) -> Any:
        """A request of the admin, at whichever API answers."""
        headers = {"Authorization": f"Bearer {self.ready.admin_key}"}
        ends = time.monotonic() + 120
        while True:
            for port in self.ports:
                try:
                    async with httpx2.AsyncClient(timeout=_TIMEOUT_S) as http:
                        url = f"http://{HOST}:{port}{path}"
                        answer = await http.request(method, url, headers=headers, **sent)
                except httpx2.HTTPError:
                    continue
                if answer.status_code < 500:
                    return answer.json()
            if time.monotonic() > ends:
                raise TimeoutError(f"no API answers {method} {path}")
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def under_load(self, readers: int) -> AsyncIterator[None]:
        """Readers lease as fast as they get answers, and callers refresh, while the block runs."""
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._read(number, over)) for number in range(readers)]
        tasks += [asyncio.create_task(self._refresh(connection, over)) for connection in self.refreshing]
        try:
            yield
        finally:
            over.set()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    self.counts.wrong.append(repr(result))

    async def _read(self, number: int, over: asyncio.Event) -> None:
        headers = {"Authorization": f"Bearer {self.ready.key}"}
        everyone = (*self.refreshing, *self.connections)
        async with httpx2.AsyncClient(timeout=_TIMEOUT_S, headers=headers) as http:
            turn = number
            while not over.is_set():
                turn += 7
                connection = everyone[turn % len(everyone)]
                url = f"http://{HOST}:{self.ports[turn % len(self.ports)]}/v1/lease"
                body = {"integration": connection.integration, "subject": connection.subject}
                try:
                    answer = await http.post(url, json=body)
                except httpx2.HTTPError:
                    self.counts.cut += 1
                    await asyncio.sleep(0.1)
                    continue
                self.counts.leases += answer.status_code == 200
                if answer.status_code != 200:
                    self.counts.refused += 1
                    self.counts.wrong.append(f"{connection.id}: {answer.status_code} {answer.text[:300]}")

    async def _refresh(self, connection: Connection, over: asyncio.Event) -> None:
        seen = connection.generation
        while not over.is_set():
            ask = EnsureFresh(seen_generation=seen, context=_CONTEXT)
            try:
                fresh = await self.parts.link.ensure_fresh(connection.tenant, connection.id, ask, timeout=20)
            except Failure:
                self.counts.late += 1
                await asyncio.sleep(0.2)
                continue
            if fresh.problem is not None:
                self.counts.late += 1
                await asyncio.sleep(0.2)
            elif fresh.generation > seen:
                self.counts.refreshes += 1
            seen = max(seen, fresh.generation)

    async def unreadable(self) -> list[str]:
        """Each token that can't be opened, by its connection."""
        broken: list[str] = []
        for connection in (*self.refreshing, *self.connections):
            async with self.parts.store.read() as tx:
                now = await tx.connections.get(connection.tenant, connection.id)
                assert now is not None
                try:
                    await tx.grants.access_token(now)
                    if await tx.grants.refresh_token(now) is None:
                        broken.append(f"{connection.id} has no refresh token")
                except Failure as failure:
                    broken.append(failure.detail)
        return broken


@asynccontextmanager
async def running_place(
    folder: Path, database_url: str, connections: int, refreshing: int, **settings: Any
) -> AsyncIterator[Place]:
    """Fill it and run it. Of the connections, `refreshing` have tokens of the provider."""
    async with ScriptedProvider() as idp, running_temporal(folder) as temporal:
        ports = (free_port(), free_port())
        ready = await installation.prepare(
            folder,
            database_url,
            ports[0],
            [idp.grant("read write") for _ in range(refreshing)],
            issuer=idp.issuer,
            client_secret=idp.client_secret,
            temporal_address=temporal.address,
            egress_allow=(idp.allowance,),
            **settings,
        )
        others = await installation.populate(ready, range(refreshing, connections))
        env = settings_environment(ready.settings)
        members = [
            Member(
                python_module("evergrant_server serve", folder / f"api-{number}", env=env | _at(port)),
                port=port,
            )
            for number, port in enumerate(ports, 1)
        ] + [
            Member(
                python_module("evergrant_server worker", folder / f"worker-{number}", env=env),
                words="worker ready",
            )
            for number in (1, 2)
        ]
        async with open_platform(ready.settings, Role.OPERATOR) as parts:
            await prepare_namespace(parts.client, ready.settings.history_retention)
            for member in members:
                member.process.pid_file.parent.mkdir(exist_ok=True)
                await member.start()
            for connection in ready.connections:
                await parts.reconciler.start_workflow(connection.tenant, connection.id)
            try:
                yield Place(parts, ready, others, ready.connections, ports, members)
            finally:
                for member in members:
                    await member.stop()


def _at(port: int) -> dict[str, str]:
    return {"EVERGRANT_PORT": str(port)}
