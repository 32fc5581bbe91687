"""docs/security/keys.md: an installation moves from its key file to OpenBao, and from there to another file.

Two APIs, two workers and a gateway, each with its role's principal or copy of the file. Each is restarted
with both services, one of a role after another; what was before is taken away; every process starts without.
"""

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bench import installation
from bench.load import HOST
from bench.processes import sqlite
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import load_settings
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import open_platform, open_store
from tests.fakes.key_services.openbao import OpenBaoWorld
from tests.fakes.platform.compose import Running
from tests.fakes.platform.docker import answers
from tests.fakes.platform.warm import WarmProcess, warm_output
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

_HOLD = timedelta(seconds=30)  # for which a process goes on without its service
_COPIES = {"api": "export-api", "gateway": "export-gateway"}
_COMMANDS = {"api": "serve", "worker": "worker", "gateway": "gateway"}
_TIMEOUT_S = 60.0

Settings = Callable[[str], dict[str, str]]  # of a role


class Member:
    """A process that is stopped, and started with other settings."""

    def __init__(self, role: str, folder: Path, env: dict[str, str], port: int = 0) -> None:
        self.role, self._folder, self._env, self._port = role, folder, env, port
        self._running: Running | None = None
        self._logs = (folder / f"{number}.log" for number in itertools.count(1))
        folder.mkdir()

    async def start(self, settings: dict[str, str]) -> None:
        """Stop it, if it runs, and start it with these settings; returns once it serves."""
        await self.stop()
        log, env = next(self._logs), {**os.environ, **self._env, **settings}
        child = await WarmProcess.start([_COMMANDS[self.role]], env, log, log)
        self._running = running = Running(self.role, child, log)
        if self._port:
            await running.until(lambda: answers(self._port, "/livez"))
        else:
            await running.says("worker ready")

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.stop()
            self._running = None


@dataclass
class Load:
    """What readers and refreshing callers have seen."""

    leases: int = 0
    refreshes: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass
class Place:
    """The installation, its processes, and OpenBao beside it."""

    folder: Path
    ready: installation.Installation
    members: list[Member]
    ports: tuple[int, ...]
    bao: OpenBaoWorld
    tokens: dict[str, str]  # the setting that names OpenBao with a role's principal
    load: Load = field(default_factory=Load)

    def settings(self, service: str, before: str = "", file: Path | None = None) -> Settings:
        """Of each role, with its own principal, and its own copy of the key file."""

        def of_role(role: str) -> dict[str, str]:
            urls = {"bao": self.tokens[role]}
            key_file = self.folder / "none.json" if file is None else _copy(file, role)
            return {
                "EVERGRANT_KEY_SERVICE": urls.get(service, service),
                "EVERGRANT_KEY_SERVICE_BEFORE": urls.get(before, before),
                "EVERGRANT_KEY_FILE": str(key_file),
            }

        return of_role

    async def start(self, settings: Settings) -> None:
        """Restart each process with these settings, those of a role one after another."""

        async def of_role(role: str) -> None:
            for member in self.members:
                if member.role == role:
                    await member.start(settings(role))

        await asyncio.gather(*map(of_role, _COMMANDS))

    async def command(self, settings: Settings, *words: str) -> str:
        """The server's command, with a worker's settings."""
        env = {**os.environ, **settings_environment(self.ready.settings), **settings("worker")}
        return await warm_output([*words], env)

    async def export(self, settings: Settings, file: Path) -> None:
        """Make the copies of the full key file for API and gateway."""
        for role, command in _COPIES.items():
            await self.command(settings, "keys", command, str(_copy(file, role)))

    async def move(self, settings: Settings, service: str) -> None:
        """Move to this service. Nothing needs another one afterwards."""
        rotation = json.loads(await self.command(settings, "keys", "rotate", "all", "-o", "json"))
        progress = rotation["progress"]
        assert (progress["done"], progress["left"], progress["broken"]) == (True, 0, 0)
        assert (progress["replaced"], progress["destroyed"]) == (5, 5)
        roots = json.loads(await self.command(settings, "keys", "status", "-o", "json"))["roots"]
        needed = {root["service"] for root in roots if root["state"] != "retired"}
        assert needed == {f"{service}{purpose}" for purpose in ServicePurpose}

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Readers lease as fast as they get answers, and callers refresh, while the block runs."""
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._read(over)) for _ in range(2)]
        tasks += [asyncio.create_task(self._refresh(one, over)) for one in self.ready.connections]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def _read(self, over: asyncio.Event) -> None:
        turns = zip(itertools.cycle(self.ready.connections), itertools.cycle(self.ports), strict=False)
        async with _caller(self.ready.key) as http:
            for connection, port in turns:
                if over.is_set():
                    return
                body = {"integration": connection.integration, "subject": connection.subject}
                answer = await _sent(http.post(f"http://{HOST}:{port}/v1/lease", json=body))
                if answer is None:
                    continue
                self.load.leases += answer.status_code == 200
                if answer.status_code != 200:
                    self.load.refused.append(f"{answer.status_code} {answer.text[:300]}")

    async def _refresh(self, connection: Connection, over: asyncio.Event) -> None:
        seen, path = connection.generation, f"/v1/connections/{connection.id}/refresh"
        async with _caller(self.ready.admin_key) as http:
            for port in itertools.cycle(self.ports):
                if over.is_set():
                    return
                answer = await _sent(http.post(f"http://{HOST}:{port}{path}", json={"generation": seen}))
                if answer is None or answer.json().get("code") == "refresh_pending":
                    continue
                if answer.status_code != 200:
                    self.load.refused.append(f"{answer.status_code} {answer.text[:300]}")
                    continue
                generation = answer.json()["generation"]
                self.load.refreshes += generation > seen
                seen = max(seen, generation)


def _caller(key: str) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(timeout=_TIMEOUT_S, headers=headers, trust_env=False)


async def _sent(call: Awaitable[httpx2.Response]) -> httpx2.Response | None:
    """None: this API is being restarted, and the other one is asked next."""
    try:
        return await call
    except httpx2.HTTPError:
        await asyncio.sleep(0.1)
        return None


def _copy(file: Path, role: str) -> Path:
    return file.with_name(f"{role}-keys.json") if role in _COPIES else file


@asynccontextmanager
async def running_place(folder: Path) -> AsyncIterator[Place]:
    (folder / "bao").mkdir()
    async with (
        ScriptedProvider() as idp,
        running_temporal(folder) as temporal,
        OpenBaoWorld.running(folder / "bao") as bao,
    ):
        ports = (free_port(), free_port(), free_port())
        ready = await installation.prepare(
            folder,
            sqlite(folder),
            ports[0],
            [idp.grant("read write") for _ in range(3)],
            issuer=idp.issuer,
            client_secret=idp.client_secret,
            temporal_address=temporal.address,
            egress_allow=(idp.allowance,),
            key_hold=_HOLD,
        )
        env = settings_environment(ready.settings)
        gateway = {"EVERGRANT_GATEWAY_PORT": str(ports[2])}
        members = [
            *(
                Member("api", folder / f"api-{port}", env | {"EVERGRANT_PORT": str(port)}, port)
                for port in ports[:2]
            ),
            *(Member("worker", folder / f"worker-{number}", env) for number in (1, 2)),
            Member("gateway", folder / "gateway", env | gateway, ports[2]),
        ]
        tokens: dict[str, str] = {}
        for role in _COMMANDS:
            token = folder / f"token-{role}"
            token.write_text(await bao.principal(role))
            tokens[role] = f"{bao.url.partition('?')[0]}?token-file={token}"
        async with open_platform(ready.settings, Role.OPERATOR) as parts:
            await prepare_namespace(parts.client, ready.settings.history_retention)
            for connection in ready.connections:
                await parts.reconciler.start_workflow(connection.tenant, connection.id)
        try:
            yield Place(folder, ready, members, ports[:2], bao, tokens)
        finally:
            for member in members:
                await member.stop()


async def unreadable(place: Place, key_file: Path) -> list[str]:
    """Each token that can't be opened, by its connection."""
    values: dict[str, Any] = {"data_dir": place.folder, "database_url": place.ready.settings.database_url}
    broken: list[str] = []
    async with open_store(load_settings(**values, key_file=key_file), Role.WORKER) as (store, _):
        for connection in place.ready.connections:
            async with store.read() as tx:
                current = await tx.connections.get(connection.tenant, connection.id)
                assert current is not None
                try:
                    await tx.grants.access_token(current)
                    assert await tx.grants.refresh_token(current) is not None
                except Failure as failure:
                    broken.append(failure.detail)
    return broken


@pytest.mark.soak
async def test_keys_move_to_a_service_and_back_while_tokens_are_leased_and_refreshed(tmp_path: Path):
    first, second = tmp_path / "keys.json", tmp_path / "second" / "keys.json"
    async with running_place(tmp_path) as place:
        to_bao, to_file = place.settings("bao", "file", first), place.settings("file", "bao", second)
        await place.export(to_bao, first)
        await place.start(place.settings("file", file=first))
        async with place.under_load():
            await place.start(to_bao)
            await place.command(to_bao, "keys", "create")
            await place.move(to_bao, "vault:transit/evergrant-")
            at_bao = place.load.leases, place.load.refreshes
            first.rename(tmp_path / "taken-away.json")

            await place.command(to_file, "keys", "create")
            await place.export(to_file, second)
            await place.start(to_file)
            await place.move(to_file, "file:")
            async with place.bao.closed(ServicePurpose.LEASE):
                await place.start(place.settings("file", file=second))
                at_file = place.load.leases, place.load.refreshes
                await asyncio.sleep(2)
        assert place.load.refused == []
        assert 0 < at_bao[0] < at_file[0] < place.load.leases
        assert 0 < at_bao[1] < at_file[1]
        assert await unreadable(place, second) == []
