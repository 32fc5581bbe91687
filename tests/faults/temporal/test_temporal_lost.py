"""Temporal's database is gone: `reconcile` builds every workflow again, and nothing the second time.

Real processes: API, worker, Temporal. EVERGRANT_FAULTS_MANY says how many connections.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
from sqlalchemy import update
from sqlmodel import col

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.grant import Grant, Origin
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.temporal_link.connect import prepare_namespace
from tests.fakes.databases import sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import a_connection, pinned_hosts, token_set
from tests.fakes.temporal import TemporalServer

MANY = int(os.environ.get("EVERGRANT_FAULTS_MANY", "6"))
TENANT = Tenant("default")
BY_HAND = {"EVERGRANT_RECONCILE_INTERVAL": "P365D"}  # the schedule would be faster, sometimes


@pytest_asyncio.fixture
async def temporal(tmp_path: Path) -> AsyncIterator[list[TemporalServer]]:
    """A server of the test's own, in a list: it will be another one."""
    (tmp_path / "temporal").mkdir()
    server = [await TemporalServer.start(tmp_path / "temporal")]
    await prepare_namespace(await server[0].client(), timedelta(days=365))
    yield server
    await server[0].stop()


async def lose_everything(server: list[TemporalServer], folder: Path) -> None:
    """The server is killed and comes back at the same address, with nothing."""
    port = int(server[0].address.rpartition(":")[2])
    await server[0].kill()
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(folder / f"temporal.db{ending}")
    server[0] = await TemporalServer.start(folder, port=port)


async def started(platform: RunningPlatform) -> int:
    """Reconcile; how many workflows it had to start."""
    began = time.monotonic()
    said = await platform.command("reconcile")
    print(f"\n{said}{time.monotonic() - began:.1f} s")
    told = re.search(rf"^{MANY} live connections, (\d+) workflows started$", said, re.MULTILINE)
    assert told is not None, said
    return int(told[1])


async def add_connections(
    store: Store, integration: Integration, idp: ScriptedProvider, many: int = MANY, age_s: float = 3600
) -> None:
    """Each with a first grant, its access token over unless it is younger."""
    now = datetime.now(UTC)
    for number in range(many):
        connection = a_connection(integration, now, subject=f"user-{number}", refresh_policy="on_demand")
        tokens = token_set(idp.grant(), expires_in=600, scopes=("read",))
        then = now - timedelta(seconds=age_s)
        grant = Grant.from_tokens(tokens, generation=1, requested=("read",), at=then)
        async with store.write() as tx:
            await tx.connections.add(connection)
            after, hosts = connection.granted(now), pinned_hosts(integration)
            await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=1, hosts=hosts)


async def let_tokens_expire(store: Store) -> None:
    async with store.write() as tx:
        over = datetime.now(UTC) - timedelta(minutes=1)
        await tx.connection.execute(update(ConnectionGrantRow).values(expires_at=over))
        await tx.connection.execute(update(ConnectionRow).values(revision=col(ConnectionRow.revision) + 1))


async def lease_all(platform: RunningPlatform, key: str, generation: int) -> None:
    turn = asyncio.Semaphore(8)
    began = time.monotonic()

    async def one(caller: httpx2.AsyncClient, number: int) -> None:
        async with turn:
            body = {"integration": "crm", "subject": f"user-{number}"}
            for _ in range(5):  # a lease waits ten seconds for its refresh, then says 503: ask again
                answer = await caller.post("/v1/lease", json=body, timeout=PATIENCE_S)
                if answer.status_code != 503:
                    break
        assert answer.status_code == 200, answer.text
        assert answer.json()["generation"] == generation

    async with platform.caller(key) as caller:
        await asyncio.gather(*(one(caller, number) for number in range(MANY)))
    print(f"{MANY} leases, each with a refresh: {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("worker_survives", [pytest.param(True, marks=pytest.mark.soak), False])
async def test_every_lease_works_again_after_temporal_lost_everything(
    tmp_path: Path, temporal: list[TemporalServer], worker_survives: bool
):
    async with (
        ScriptedProvider() as idp,
        running_platform(tmp_path, temporal[0].address, allow=(idp.allowance,), env=BY_HAND) as platform,
    ):
        await platform.integration("crm", idp)
        key = await platform.app("pipeline", "crm", "token")
        ring = KeyRing.open(platform.key_file, Role.WORKER)
        store = await Store.open(sqlite_url(platform.data), ring, SystemClock())
        async with store.read() as tx:
            integration = await tx.integrations.by_name(TENANT, "crm")
        assert integration is not None
        await add_connections(store, integration, idp)
        assert await started(platform) == MANY
        await lease_all(platform, key, 2)

        await lose_everything(temporal, tmp_path / "temporal")
        await platform.command("db", "upgrade")
        if not worker_survives:
            platform.children["worker"].kill()
            await platform.children["worker"].wait()
            await platform.start("worker", "evergrant_server", "worker")
        await let_tokens_expire(store)
        again = await started(platform)
        # a worker that starts and finds no schedule starts the workflows by itself
        assert again == MANY if worker_survives else again <= MANY
        await lease_all(platform, key, 3)
        assert await started(platform) == 0

        assert idp.refreshes == 2 * MANY == idp.count("token", grant_type="refresh_token")
        assert all(family.alive for family in idp.families)
        await store.close()
