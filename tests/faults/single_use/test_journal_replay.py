"""A journalled reply is never lost: every worker of that host can replay it.

Workers are killed where it hurts without any patch: the test holds the store's write lock, so
that a worker has its answer in the journal and can't commit it.
"""

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind
from evergrant_server.crypto import AssociatedData, KeyPurpose, SealingKey, new_sealing_key
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.wiring.platform import open_platform
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation, prepared
from tests.fakes.providers.scripted_provider import ScriptedProvider, hold_answer
from tests.faults.support.activities import Activities
from tests.security.secrets.canaries import hits

STRICT = RefreshRules(rotation=Rotation.STRICT)
ROOT = Path(__file__).parents[3]


class Workers:
    """Worker processes of one host, and the parts to look at what they do."""

    def __init__(self, settings: Settings, logs: Path) -> None:
        self.settings = settings
        self.journals = settings.data_dir / "journals"
        self._logs = logs
        self._running: list[asyncio.subprocess.Process] = []

    async def start(self) -> asyncio.subprocess.Process:
        """A worker that is ready. Its settings come from the environment, as always."""
        given = self.settings
        env = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")} | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python/src'}",
            "EVERGRANT_DATA_DIR": str(given.data_dir),
            "EVERGRANT_DATABASE_URL": given.database_url,
            "EVERGRANT_TEMPORAL_ADDRESS": given.temporal_address or "",
            "EVERGRANT_TEMPORAL_TASK_QUEUE": given.temporal_task_queue,
            "EVERGRANT_EGRESS_ALLOW": ",".join(given.egress_allow),
            "EVERGRANT_RELAY_INTERVAL": "PT0.1S",
        }
        log = self._logs / f"worker-{len(self._running)}.log"
        with log.open("wb") as out:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-u", "-m", "evergrant_server", "worker", cwd=ROOT, env=env, stdout=out,
                stderr=out, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._running.append(child)
        async with asyncio.timeout(PATIENCE_S):
            while b"worker ready" not in log.read_bytes():
                assert child.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        return child

    async def stop(self) -> None:
        for child in self._running:
            if child.returncode is None:
                child.send_signal(signal.SIGKILL)
                await child.wait()

    def entries(self) -> list[Path]:
        return list(self.journals.glob("*/*.entry"))

    async def until_journalled(self) -> Path:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := self.entries()):
                await asyncio.sleep(0.02)
        return found[0]


@pytest_asyncio.fixture
async def host(
    temporal_address: str, tmp_path: Path, idp: ScriptedProvider
) -> AsyncIterator[tuple[Installation, Workers]]:
    await migrated_sqlite(tmp_path)
    settings = await prepared(temporal_address, sqlite_url(tmp_path), tmp_path, (idp.allowance,))
    workers = Workers(settings, tmp_path)
    async with open_platform(settings, Role.OPERATOR) as parts:
        try:
            yield Installation(parts), workers
        finally:
            await workers.stop()


@asynccontextmanager
async def store_that_takes_no_write(folder: Path) -> AsyncIterator[None]:
    """Hold SQLite's write lock, as a stopped process would."""
    lock = sqlite3.connect(folder / "evergrant.db", isolation_level=None, timeout=PATIENCE_S)
    try:
        lock.execute("BEGIN IMMEDIATE")
        yield
    finally:
        lock.execute("ROLLBACK")
        lock.close()


@pytest.mark.parametrize(
    ("befalls", "heir"),
    [
        (signal.SIGKILL, "a worker that lives"),
        (signal.SIGKILL, "the next worker"),
        (signal.SIGSTOP, "a worker that lives"),
    ],
)
async def test_a_worker_killed_or_stopped_between_journal_and_commit_costs_nothing(
    host: tuple[Installation, Workers],
    idp: ScriptedProvider,
    tmp_path: Path,
    befalls: signal.Signals,
    heir: str,
):
    place, workers = host
    struck = await workers.start()
    connection = await place.connect(idp, STRICT)
    gate = asyncio.Event()
    idp.script(hold_answer(gate))
    asked = asyncio.create_task(place.ensure_fresh(connection, 1))
    await idp.until("token", 2)
    if heir == "a worker that lives":
        await workers.start()
    async with store_that_takes_no_write(tmp_path):
        gate.set()
        entry = await workers.until_journalled()
        struck.send_signal(befalls)
        if befalls is signal.SIGKILL:
            await struck.wait()
        written = entry.read_bytes()
    if heir == "the next worker":
        await workers.start()
    row = await place.until(connection, lambda c: c.generation == 2)
    assert row.state is LifecycleState.ACTIVE
    if befalls is signal.SIGSTOP:
        struck.send_signal(signal.SIGCONT)  # it commits once more what the store has by now
    told = await asked
    assert told.generation == 2 or told.problem is ErrorCode.REFRESH_PENDING, "asked before it was taken up"
    assert idp.count("token", grant_type="refresh_token") == 1, "asked once"
    async with asyncio.timeout(PATIENCE_S):
        while workers.entries():
            await asyncio.sleep(0.05)
    assert await place.open_attempts(connection) == 0
    assert await place.actions(connection) == [AuditAction.GRANT_INSTALLED, AuditAction.GRANT_REFRESHED]
    async with asyncio.timeout(PATIENCE_S):  # a workflow that was told to wait comes back to it
        while (await place.ensure_fresh(connection, 2)).generation < 3:
            await asyncio.sleep(0.1)
    assert idp.families[-1].alive, "its new refresh token is the family's"
    family = idp.families[-1]
    tokens = [*family.used, family.refresh_token, *family.access_tokens]
    assert hits({"token": tokens, "client secret": [idp.client_secret]}, [written]) == []
    assert hits({"connection": [connection.id]}, [written]), "its header is in clear, and was looked at"


class FailingRing(KeyRing):
    """A key service that can go away."""

    away = False

    def unwrap(self, purpose: KeyPurpose, place: AssociatedData, key_id: str, wrapped: bytes) -> SealingKey:
        if self.away:
            raise Failure(ErrorCode.KEY_UNAVAILABLE, "the key service is away")
        return super().unwrap(purpose, place, key_id, wrapped)


@pytest_asyncio.fixture
async def ring(place: Installation) -> FailingRing:
    ring = FailingRing.open(place.parts.settings.key_path, Role.WORKER)
    assert isinstance(ring, FailingRing)
    return ring


@pytest_asyncio.fixture
async def own_store(place: Installation, ring: FailingRing) -> AsyncIterator[Store]:
    store = await Store.open(place.parts.settings.database_url, ring, place.parts.clock)
    yield store
    await store.close()


async def test_a_key_service_that_goes_away_after_the_answer_costs_nothing(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, own_store: Store, ring: FailingRing
):
    connection = await place.connect(idp, STRICT)
    worker = Activities(place, (idp.allowance,), tmp_path / "here", store=own_store)
    gate = asyncio.Event()
    idp.script(hold_answer(gate))
    refresh = asyncio.create_task(worker.refresh(connection, 1))
    await idp.until("token", 2)
    ring.away = True
    gate.set()
    assert (await refresh).generation == 2


async def test_a_key_service_that_is_away_is_found_before_anything_is_sent(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, own_store: Store, ring: FailingRing
):
    connection = await place.connect(idp, STRICT)
    worker = Activities(place, (idp.allowance,), tmp_path / "here", store=own_store)
    ring.away = True
    assert (await worker.refresh(connection, 1)).failure is ErrorCode.KEY_UNAVAILABLE
    ring.away = False
    assert idp.count("token", grant_type="refresh_token") == 0
    assert await place.open_attempts(connection) == 0


async def test_a_journal_without_room_is_found_before_anything_is_sent(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    worker = Activities(place, (idp.allowance,), tmp_path / "here")
    mine = tmp_path / "here" / worker.journal.id
    shutil.move(mine, tmp_path / "unmounted")
    assert (await worker.refresh(connection, 1)).failure is ErrorCode.JOURNAL_UNAVAILABLE
    assert idp.count("token", grant_type="refresh_token") == 0
    assert await place.open_attempts(connection) == 0
    shutil.move(tmp_path / "unmounted", mine)
    assert (await worker.refresh(connection, 1)).generation == 2


async def left_behind(place: Installation, connection: Connection, dies: Activities) -> Path:
    """The entry of a worker that is gone, sealed with an unknown key."""
    now = place.parts.clock.now()
    attempt = Attempt(
        tenant=TENANT,
        id=AttemptId(new_id("att")),
        connection_id=connection.id,
        kind=AttemptKind.REFRESH,
        from_generation=1,
        journal_id=dies.journal.id,
        opened_at=now,
        send_by=now,
    )
    async with place.store.write() as tx:
        await tx.attempts.open(attempt)
    path = dies.journal.reserve(attempt).write_entry(new_sealing_key("cky"), b"an answer").path
    dies.journal.release()
    return path


async def test_a_torn_entry_is_set_aside_and_the_connection_goes_on(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    dies, lives = (Activities(place, (idp.allowance,), tmp_path / "host") for _ in range(2))
    path = await left_behind(place, connection, dies)
    path.write_bytes(path.read_bytes()[:-1][:40])
    assert (await lives.refresh(connection, 1)).failure is ErrorCode.REFRESH_PENDING, "there may be an answer"
    assert await lives.replayer.sweep() == 0
    assert path.with_suffix(".set-aside").exists()
    assert lives.journal.count_waiting() == (0, 1)
    assert (await lives.refresh(connection, 1)).generation == 2, "as for any answer that is lost"


async def test_an_entry_whose_key_is_unavailable_is_waited_for(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    dies, lives = (Activities(place, (idp.allowance,), tmp_path / "host") for _ in range(2))
    path = await left_behind(place, connection, dies)
    for _ in range(2):
        assert await lives.replayer.sweep() == 0
        assert (await lives.refresh(connection, 1)).failure is ErrorCode.REFRESH_PENDING
    assert path.exists()
    assert idp.count("token", grant_type="refresh_token") == 0
