"""A store on SQLite with connections whose workflows a scripted link plays."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.clock import SetClock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant, new_id
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Store
from evergrant_server.temporal_link import Reconciler, WorkflowStarter
from providers.definition.registry import Registry
from tests.fakes.databases import clock, key_path, migrated_sqlite, ring, sqlite_url
from tests.fakes.scripted_link import ScriptedLink

__all__ = ["clock", "key_path", "ring"]

Place = Callable[[int], Awaitable[tuple[Reconciler, ScriptedLink]]]


@pytest_asyncio.fixture
async def store(tmp_path: Path, ring: KeyRing, clock: SetClock) -> AsyncIterator[Store]:
    await migrated_sqlite(tmp_path)
    opened = await Store.open(sqlite_url(tmp_path), ring, clock)
    yield opened
    await opened.close()


@pytest.fixture
def place(store: Store, ring: KeyRing, clock: SetClock) -> Place:
    """So many connections, what reconciles them, and the link that it asks."""

    async def made(many: int) -> tuple[Reconciler, ScriptedLink]:
        connections = [connection(number, clock) for number in range(many)]
        async with store.write() as tx:
            for it in connections:
                await tx.connections.add(it)
        link = ScriptedLink(connections)
        lives = WorkflowStarter(store, link, ring, clock, Registry({}).refresh_rules)
        return Reconciler(store, link, lives, clock), link

    return made


def connection(number: int, clock: SetClock) -> Connection:
    now = clock.now()
    return Connection(
        tenant=Tenant("acme"),
        id=ConnectionId(f"con_{number:026}"),
        integration_id=IntegrationId(new_id("int")),
        integration="crm",
        provider="generic",
        subject=f"user-{number}",
        state=LifecycleState.PENDING_CONSENT,
        created_at=now,
        changed_at=now,
        consent_deadline=now + timedelta(hours=1),
    )
