"""An installation of real processes: two APIs, a gateway, two workers, a database, Temporal; and its rows."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import httpx2
from sqlalchemy import func, select, update

from bench import installation
from bench.load import HOST
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.crypto import KeyPurpose, KeyRing, Role
from evergrant_server.crypto.root_keys import RootState, first_roots
from evergrant_server.settings import load_settings
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import AttemptRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.keys import NO_CONNECTION, KeyRow
from evergrant_server.store.rotation.processes import MAY_COME_BACK, Process, ProcessRow, ProcessState
from evergrant_server.store.rotation.tenant_keys import REPLY_KEPT, WORST_SKEW
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.wiring.platform import open_platform
from tests.fakes.key_services.openbao import OpenBaoWorld
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.compose import finished
from tests.fakes.ports import free_port
from tests.fakes.temporal import running_temporal
from tests.faults.harness.provider import GRACE_S, StrictProvider
from tests.faults.rotation.gate import Gate, Passage
from tests.faults.rotation.load import Order, Tally
from tests.faults.rotation.members import Member, Onlooker
from tests.faults.rotation.walk import Seen
from tests.faults.rotation.worker import GATE

_ROWS_OF_CONNECTION = 6  # two keys, two values, two authenticators
_ROWS_BESIDE_TENANT = 50  # so many rows, and one more tenant with keys of its own
_TENANTS_AT_ONCE = 100
_PROCESS, _ATTEMPT, _KEY = table_of(ProcessRow), table_of(AttemptRow), table_of(KeyRow)
_COMMAND_S = 3600.0
ROLES = ("api", "gateway", "worker")
SERVICES = ("file", "openbao", "file-to-openbao")  # the last begins with the file


@dataclass(frozen=True)
class Size:
    """How large the proof is."""

    rows: int
    readers: int
    refreshing: int
    pause_s: float  # of a reader, between two leases
    seed: int

    @property
    def connections(self) -> int:
        return max(self.rows // _ROWS_OF_CONNECTION, self.refreshing + 1)


@dataclass
class Services:
    """Which key service has the roots, as the processes' settings say."""

    bao: OpenBaoWorld | None
    shared: dict[str, str]  # of every process
    urls: dict[str, str]  # of OpenBao, with the token of a role
    current: str = "file"
    before: str = ""

    @classmethod
    async def of(cls, bao: OpenBaoWorld | None, shared: dict[str, str]) -> Self:
        return cls(bao, shared, {role: await bao.url_of(role) for role in ROLES} if bao is not None else {})

    def name(self, current: str, before: str = "") -> None:
        """Have processes that start from here on use these: the first wraps, both open."""
        self.current, self.before = current, before

    def env(self, role: str) -> dict[str, str]:
        """The settings of a process of this role."""
        urls = {"openbao": self.urls.get(role, "")}
        return self.shared | {
            "EVERGRANT_KEY_SERVICE": urls.get(self.current, self.current),
            "EVERGRANT_KEY_SERVICE_BEFORE": urls.get(self.before, self.before),
        }


@dataclass
class Place:
    """The running parts."""

    folder: Path
    ready: installation.Installation
    store: Store
    services: Services
    members: list[Member]
    stale: Member  # an API that no reader asks: it is stopped, and goes on later
    service: str
    gate: Gate
    order: Order
    tally: Tally = field(default_factory=Tally)
    seen: Seen = field(default_factory=Seen)

    async def admin(self, method: str, path: str, *, port: int | None = None, **sent: Any) -> Any:
        """What an API answers an admin, whichever of them does."""
        key = sent.pop("key", self.ready.admin_key)

        async def answer() -> httpx2.Response | None:
            for api in [port] if port else self.order.ports:
                try:
                    async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False) as http:
                        url = f"http://{HOST}:{api}{path}"
                        headers = {"Authorization": f"Bearer {key}"}
                        return await http.request(method, url, headers=headers, **sent)
                except httpx2.HTTPError:
                    continue
            return None

        reply = await eventually(answer, lambda reply: reply is not None and reply.status_code < 500)
        assert reply is not None
        assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json()

    async def command(self, *words: str, **env: str) -> str:
        """A command of the host, with a worker's settings; what it printed."""
        command = [sys.executable, "-m", "evergrant_server", *words]
        return await finished(command, {**os.environ, **self.services.env("worker"), **env}, _COMMAND_S)

    async def processes(self) -> list[Process]:
        async with self.store.read() as tx:
            return await tx.processes.all()

    async def root_states(self, purpose: KeyPurpose) -> dict[str, RootState]:
        """Of the roots that a key service wraps."""
        async with self.store.read() as tx:
            roots = [stored.root for stored in await tx.root_keys.all()]
        return {root.id: root.state for root in roots if root.purpose.value == purpose.value}

    async def keys(self) -> int:
        async with self.store.read() as tx:
            return (await tx.connection.execute(select(func.count()).select_from(_KEY))).scalar_one()

    async def let_time_pass(self, kept: str = "") -> None:
        """As if silent processes but `kept` had been silent for longer than they may come back, and lost
        attempts a week old: those who were killed here are dead, and their journals were replayed."""
        silent = [process for process in await self.processes() if process.state is ProcessState.SILENT]
        lost = (AttemptOutcome.SUPERSEDED.value, AttemptOutcome.GIVEN_UP.value)
        async with self.store.write() as tx:
            for process in silent:
                if process.id != kept:
                    row = update(_PROCESS).where(_PROCESS.c.id == process.id)
                    await tx.connection.execute(row.values(seen_at=process.seen_at - MAY_COME_BACK))
            old = update(_ATTEMPT).where(_ATTEMPT.c.outcome.in_(lost))
            await tx.connection.execute(old.values(opened_at=tx.now - REPLY_KEPT - WORST_SKEW))

    def calls(self) -> Counter[str]:
        """The calls of the key service so far."""
        return Counter() if self.services.bao is None else self.services.bao.calls

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Readers lease and callers refresh while the block runs."""
        load = Onlooker("tests.faults.rotation.load", dict, asdict(self.order))
        await load.start()
        try:
            yield
        finally:
            self.tally += Tally(**await load.end())

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Onlooker]:
        """Every sealed column is opened again and again while the block runs, and once more after it."""
        walk = Onlooker("tests.faults.rotation.walk", lambda: self.services.env("worker"))
        await walk.start(first_line=True)
        try:
            yield walk
        finally:
            self.seen += Seen(**await walk.end())

    async def restart(self, walk: Onlooker) -> None:
        """Every process with the settings and the key file as they are now, one after another."""
        for member in self.members:
            await member.restart()
        self.seen += Seen(**await walk.end())
        await walk.start(first_line=True)


def _replies(size: Size) -> dict[str, dict[str, Any]]:
    """The token replies of the connections that aren't refreshed, by their subjects."""
    replies: dict[str, dict[str, Any]] = {}
    for number in range(size.refreshing, size.connections):
        token = hashlib.sha256(f"{size.seed} token {number}".encode()).hexdigest()
        replies[f"user-{number:04}"] = {"access_token": f"at-{token}", "refresh_token": f"rt-{token}"}
    return replies


async def _add_tenants(store: Store, size: Size) -> None:
    """Tenants that have nothing but keys: what stands under the roots."""
    for first in range(0, size.rows // _ROWS_BESIDE_TENANT, _TENANTS_AT_ONCE):
        async with store.write() as tx:
            for number in range(first, min(first + _TENANTS_AT_ONCE, size.rows // _ROWS_BESIDE_TENANT)):
                tenant = Tenant(f"tenant-{number:05}")
                await tx.sealer.get_or_create_keys(tenant, NO_CONNECTION, tuple(KeyPurpose))


async def _wrapped(store: Store, service: OpenBaoWorld) -> None:
    """Have the service wrap the roots of the key file, which no process but the proof reads from here on."""
    assert store.ring.file is not None
    async with service.as_role("worker") as worker:
        rows = await first_roots(worker, store.ring.file, SystemClock().now(), lie_in_file=False)
    async with store.write() as tx:
        for root, wrapped in rows:
            await tx.root_keys.add(root, wrapped)


@asynccontextmanager
async def running_place(folder: Path, database_url: str, size: Size, service: str) -> AsyncIterator[Place]:
    """Fill it and run it, with one of SERVICES."""
    async with AsyncExitStack() as stack:
        idp = await stack.enter_async_context(StrictProvider("grace", 3600))
        temporal = await stack.enter_async_context(running_temporal(folder))
        ports, replies = [free_port() for _ in range(4)], _replies(size)
        ready = await installation.prepare(
            folder,
            database_url,
            ports[0],
            [idp.grant("read write") for _ in range(size.refreshing)],
            issuer=idp.issuer,
            client_secret=idp.client_secret,
            refresh=RefreshRules(rotation=Rotation.GRACE, grace_s=GRACE_S),
            temporal_address=temporal.address,
            egress_allow=(idp.allowance,),
        )
        contents = iter(replies.values())
        await installation.populate(ready, range(size.refreshing, size.connections), lambda: next(contents))
        ring = KeyRing.open(ready.settings.key_path, Role.OPERATOR)
        store = await Store.open(ready.settings.database_url, ring, SystemClock())
        stack.push_async_callback(store.close)
        await _add_tenants(store, size)
        bao = None
        if service != "file":
            (folder / "bao").mkdir()
            bao = await stack.enter_async_context(OpenBaoWorld.running(folder / "bao"))
        services = await Services.of(bao, settings_environment(ready.settings) | {GATE: str(folder / "gate")})
        if bao is not None and service == "openbao":
            await _wrapped(store, bao)
            ready.settings.key_path.rename(folder / "unused.json")
            services.name("openbao")
        gate = Gate(_nothing)
        await stack.enter_async_context(gate.open(folder / "gate"))
        members, stale = _members(folder, services, ports)
        order = _order(ready, replies, size, ports[:2])
        place = Place(folder, ready, store, services, members, stale, service, gate, order)
        await _begin(place, stack)
        yield place


def _order(
    ready: installation.Installation, replies: dict[str, dict[str, Any]], size: Size, ports: list[int]
) -> Order:
    refreshed = {connection.subject: None for connection in ready.connections}
    return Order(
        ports=ports,
        key=ready.key,
        admin_key=ready.admin_key,
        seed=size.seed,
        readers=size.readers,
        pause_s=size.pause_s,
        tokens=refreshed | {subject: reply["access_token"] for subject, reply in replies.items()},
        refreshing={connection.id: connection.generation for connection in ready.connections},
    )


async def _begin(place: Place, stack: AsyncExitStack) -> None:
    """Start the workflows of the connections that are refreshed, and every process."""
    values = {name: value for name, value in place.services.env("worker").items() if "KEY_SERVICE" in name}
    flags = {name.removeprefix("EVERGRANT_").lower(): value for name, value in values.items()}
    settings = load_settings(**place.ready.settings.model_dump() | flags)
    async with open_platform(settings, Role.OPERATOR) as parts:
        await prepare_namespace(parts.client, timedelta(days=1))
        for connection in place.ready.connections:
            await parts.reconciler.start_workflow(connection.tenant, connection.id)
    for member in place.members:
        stack.push_async_callback(member.stop)
        await member.start()
    stack.push_async_callback(place.stale.stop)


def _members(folder: Path, services: Services, ports: list[int]) -> tuple[list[Member], Member]:
    """Two APIs, a gateway and two workers; and an API that no reader asks."""

    def env(role: str, **values: object) -> Callable[[], dict[str, str]]:
        return lambda: services.env(role) | {name: str(value) for name, value in values.items()}

    apis = [
        Member(name, "evergrant_server serve", folder, env("api", EVERGRANT_PORT=port), port)
        for name, port in (("api-1", ports[0]), ("api-2", ports[1]), ("stale", ports[3]))
    ]
    at_gateway = env("gateway", EVERGRANT_GATEWAY_PORT=ports[2])
    gateway = Member("gateway", "evergrant_server gateway", folder, at_gateway, ports[2])
    module = "tests.faults.rotation.worker"
    workers = [Member(f"worker-{number}", module, folder, env("worker")) for number in (1, 2)]
    return [*apis[:2], gateway, *workers], apis[2]


async def _nothing(_: Passage) -> None:
    """Nobody watches."""
