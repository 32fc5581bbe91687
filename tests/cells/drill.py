"""One move between two installations of real processes, under leases and refreshes, with kills in between.

Each has an API, a worker, a database and a Temporal server. The provider rotates refresh tokens and ends a
whole family when one is used twice: a connection that both cells refreshed would be lost, and counted.
"""

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from evergrant import AsyncEvergrant, EvergrantError
from evergrant.cli.commands.transfer import export_key

from bench import installation
from bench.installation import TENANT, Installation
from bench.load import HOST
from bench.processes import postgresql, sqlite
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.cells.moves import MoveState, TenantMove
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store.database import schema
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import Platform, open_platform
from tests.fakes.platform.compose import finished
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal
from tests.faults.rotation.members import Member

_LONGEST_S = 3600.0
_COMMAND_S = 120.0
_CHECKED = 20  # connections that are refreshed in their new cell at the end
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    connections: int
    readers: int = 8
    refreshing: int = 4
    postgresql: bool = False
    kills: bool = True


@dataclass
class Tally:
    leases: int = 0
    refreshes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refresh_answers: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0


@dataclass
class Cell:
    """One installation, whose processes run."""

    settings: Settings
    folder: Path
    parts: Platform
    members: list[Member]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.settings.port}"

    @property
    def worker(self) -> Member:
        return next(member for member in self.members if member.name == "worker")

    async def command(self, *words: str) -> str:
        """A command of this cell's host."""
        command = [sys.executable, "-m", "evergrant_server", *words]
        return await finished(command, {**os.environ, **settings_environment(self.settings)}, _COMMAND_S)

    async def move(self) -> TenantMove | None:
        async with self.parts.store.read() as tx:
            moves = await tx.tenant_moves.page(TENANT)
        return moves[-1] if moves else None

    async def rows(self, table: str) -> int:
        async with self.parts.store.read() as tx:
            return sum(each.rows for each in await tx.moved_rows.ranges(TENANT, table, "", 100_000))


class Load:
    """Callers of the tenant, who know the first cell's address and may be sent to the other one."""

    def __init__(
        self, here: str, there: str, ready: Installation, connections: tuple[Connection, ...]
    ) -> None:
        self._here, self._there, self._ready = here, there, ready
        self._connections, self.tally, self._over = connections, Tally(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, readers: int, refreshing: int) -> None:
        os.environ["EVERGRANT_CELLS"] = self._there
        self._tasks = [asyncio.create_task(self._read(number)) for number in range(readers)]
        self._tasks += [
            asyncio.create_task(self._refresh(connection)) for connection in self._connections[:refreshing]
        ]

    async def end(self) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)

    async def _read(self, number: int) -> None:
        chance = random.Random(number)
        async with AsyncEvergrant(self._here, self._ready.key, cache_leases_for=timedelta(0)) as client:
            while not self._over.is_set():
                subject, began = chance.choice(self._connections).subject, time.monotonic()
                try:
                    await client.lease("crm", subject)
                    self.tally.leases += 1
                except EvergrantError as error:
                    self.tally.failed[error.code] += 1
                self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - began)
                await asyncio.sleep(0.05 * chance.uniform(0.5, 1.5))

    async def _refresh(self, connection: Connection) -> None:
        """Want a newer token again and again. One that has to wait is no failure: the lease goes on."""
        seen = connection.generation
        async with AsyncEvergrant(self._here, self._ready.admin_key) as client:
            while not self._over.is_set():
                try:
                    fresh = await client.refresh(connection.id, seen_generation=seen)
                    self.tally.refreshes += fresh.generation > seen
                    seen = fresh.generation
                except EvergrantError as error:
                    self.tally.refresh_answers[error.code] += 1
                await asyncio.sleep(0.5)


async def prove(folder: Path, size: Size, say: Say) -> list[str]:
    """Move the tenant; returns what was wrong."""
    async with AsyncExitStack() as stack:
        idp = await stack.enter_async_context(ScriptedProvider())
        began = time.monotonic()
        ready, here, there, connections = await _running(stack, folder, size, idp)
        say(f"{size.connections:,} connections in two cells after {time.monotonic() - began:.0f} s")
        load = Load(here.url, there.url, ready, connections)
        load.begin(size.readers, size.refreshing)
        try:
            await _moved(here, there, size, say)
        finally:
            await load.end()
        return await _checked(here, there, load, idp, connections, say)


async def _moved(here: Cell, there: Cell, size: Size, say: Say) -> None:
    private, public = there.folder / "arriving.key", there.folder / "arriving.pub"
    export_key(private, public)
    offer, began = here.folder / "tenant.move", time.monotonic()
    words = ("--to", there.url, "--key", str(public), "--out", str(offer))
    await here.command("tenants", "move", TENANT, *words)
    say((await there.command("tenants", "receive", str(offer), "--key", str(private))).strip())
    kills = _kills(here, there, size, say) if size.kills else None
    seen = ""
    while True:
        move = await there.move()
        assert move is not None
        if move.state != seen:
            seen = move.state
            say(f"{time.monotonic() - began:6.1f} s: {seen}")
        if move.state in (MoveState.DONE, MoveState.UNDONE):
            break
        if kills is not None:
            await anext(kills, None)
        if time.monotonic() - began > _LONGEST_S:
            raise TimeoutError(f"the move doesn't end: {move}")
        await asyncio.sleep(0.05)


async def _kills(here: Cell, there: Cell, size: Size, say: Say) -> AsyncIterator[None]:
    """SIGKILL the worker that copies when half is there, and again while it starts workflows."""
    while await there.rows("connection") * 2 < size.connections:
        yield
    await there.worker.kill()
    say(f"SIGKILL of the worker there; {await there.rows('connection'):,} connections are copied")
    while (move := await there.move()) is not None and move.state is not MoveState.ACTIVATING:
        yield
    await there.worker.kill()
    say("SIGKILL of the worker there, which starts workflows")
    await here.worker.kill()
    say("SIGKILL of the worker here")


async def _checked(
    here: Cell, there: Cell, load: Load, idp: ScriptedProvider, connections: tuple[Connection, ...], say: Say
) -> list[str]:
    tally, wrong = load.tally, list[str]()
    await _until(here, MoveState.LEFT)
    source, target = await here.move(), await there.move()
    assert source is not None
    assert target is not None
    if target.state is not MoveState.DONE:
        wrong.append(f"the move is {target.state}: {target.problem}")
    if not target.root or source.root != target.root or source.counts != target.counts:
        wrong.append(f"roots {source.root} and {target.root}, counts {source.counts} and {target.counts}")
    lost = await _lost(there, load, idp, connections, wrong)
    assert target.paused_at is not None
    assert target.closed_at is not None
    assert source.closed_at is not None
    paused = (target.closed_at - (source.paused_at or target.paused_at)).total_seconds()
    closed = (target.closed_at - source.closed_at).total_seconds()
    rows = sum(target.counts.values())
    say(f"leases: {tally.leases:,}, failed {sum(tally.failed.values())} {dict(tally.failed)}, "
        f"the slowest took {tally.slowest_s:.2f} s")  # fmt: skip
    say(f"refreshes: {tally.refreshes:,}, paused for {paused:.1f} s")
    say(f"refreshes that were asked for again: {dict(tally.refresh_answers)}")
    say(f"nobody served the tenant for {closed:.2f} s: callers waited, and followed")
    say(f"verified: {rows:,} rows of {len(target.counts)} tables, root {target.root}")
    say(f"lost {lost} of {len(connections):,}")
    if tally.failed:
        wrong.append(f"leases failed: {dict(tally.failed)}")
    return wrong + ([f"{lost} connections are lost"] if lost else [])


async def _lost(
    there: Cell, load: Load, idp: ScriptedProvider, connections: tuple[Connection, ...], wrong: list[str]
) -> int:
    """How many families the provider has ended; some connections are refreshed in their new cell besides."""
    chance = random.Random(1)
    admin = load._ready.admin_key  # of the same proof
    async with AsyncEvergrant(there.url, admin) as client:
        for connection in chance.sample(connections, min(_CHECKED, len(connections))):
            before = await client.connection(connection.id)
            after = await client.refresh(connection.id, seen_generation=before.generation)
            if after.generation <= before.generation:
                wrong.append(f"{connection.id} isn't refreshed in its new cell")
    return sum(not family.alive for family in idp.families)


async def _until(cell: Cell, state: MoveState) -> None:
    ends = time.monotonic() + _COMMAND_S
    while (move := await cell.move()) is None or move.state is not state:
        if time.monotonic() > ends:
            raise TimeoutError(f"the move isn't {state}: {move}")
        await asyncio.sleep(0.1)


async def _running(
    stack: AsyncExitStack, folder: Path, size: Size, idp: ScriptedProvider
) -> tuple[Installation, Cell, Cell, tuple[Connection, ...]]:
    """Both cells: the first one with the connections, of which the refreshed ones have a workflow."""
    folders = [folder / "here", folder / "there"]
    for each in folders:
        each.mkdir()
    make = (await stack.enter_async_context(postgresql())) if size.postgresql else None
    urls = [await make() if make else sqlite(each) for each in folders]
    temporals = [await stack.enter_async_context(running_temporal(each)) for each in folders]
    ports = [free_port(), free_port()]
    addresses = [f"http://{HOST}:{port}" for port in ports]
    shared: dict[str, Any] = {"relay_interval": timedelta(seconds=1)}
    ready = await installation.prepare(
        folders[0],
        urls[0],
        ports[0],
        [],
        issuer=idp.issuer,
        client_secret=idp.client_secret,
        refresh=RefreshRules(rotation=Rotation.STRICT),
        temporal_address=temporals[0].address,
        egress_allow=(idp.allowance,),
        public_url=addresses[0],
        **shared,
    )
    connections = await installation.populate(ready, range(size.connections), lambda: idp.grant("read write"))
    allowed = (idp.allowance, addresses[0].removeprefix("http://"))
    settings = load_settings(
        data_dir=folders[1],
        database_url=urls[1],
        port=ports[1],
        temporal_address=temporals[1].address,
        egress_allow=allowed,
        public_url=addresses[1],
        **shared,
    )
    here = await stack.enter_async_context(_cell(ready.settings, folders[0]))
    secrets = folders[0] / "cell.secrets"
    await here.command("keys", "export-cell", str(secrets))
    there_alone = Cell(settings, folders[1], here.parts, [])
    await there_alone.command("keys", "create", "--cell-of", str(secrets))
    await schema.upgrade(urls[1])
    there = await stack.enter_async_context(_cell(settings, folders[1]))
    for connection in connections[: size.refreshing]:
        await here.parts.reconciler.start_workflow(connection.tenant, connection.id)
    return ready, here, there, connections


@asynccontextmanager
async def _cell(settings: Settings, folder: Path) -> AsyncIterator[Cell]:
    env = settings_environment(settings)
    members = [
        Member("api", "evergrant_server serve", folder, lambda: env, settings.port),
        Member("worker", "evergrant_server worker", folder, lambda: env),
    ]
    async with open_platform(settings, Role.OPERATOR) as parts:
        await prepare_namespace(parts.client, settings.history_retention)
        try:
            for member in members:
                await member.start()
            yield Cell(settings, folder, parts, members)
        finally:
            for member in members:
                await member.stop()
