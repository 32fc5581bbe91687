"""A store on SQLite with connections whose workflows a scripted link plays."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant, new_id
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Store
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter
from providers.definition.registry import Registry
from tests.fakes.clock import SetClock
from tests.fakes.databases import clock, key_path, migrated_sqlite, ring, sqlite_url
from tests.unit.temporal_link.scripted_link import ScriptedLink

__all__ = ["clock", "key_path", "ring"]

Prepare = Callable[[int], Awaitable[tuple[Reconciler, ScriptedLink]]]


def connection_ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"con_{number:026}" for number in numbers)


@pytest_asyncio.fixture
async def store(tmp_path: Path, ring: KeyRing, clock: SetClock) -> AsyncIterator[Store]:
    await migrated_sqlite(tmp_path)
    opened = await Store.open(sqlite_url(tmp_path), ring, clock)
    yield opened
    await opened.close()


@pytest.fixture
def prepare(store: Store, ring: KeyRing, clock: SetClock) -> Prepare:
    """Adds that many connections; returns the reconciler and the link that it queries."""

    async def prepared(count: int) -> tuple[Reconciler, ScriptedLink]:
        connections = [connection(number, clock) for number in range(count)]
        async with store.write() as tx:
            for added in connections:
                await tx.connections.add(added)
        link = ScriptedLink(connections)
        starter = WorkflowStarter(store, link, ring, clock, Registry({}).refresh_rules)
        return Reconciler(store, link, starter, clock), link

    return prepared


def connection(number: int, clock: SetClock) -> Connection:
    now = clock.now()
    return Connection(
        tenant=Tenant("acme"),
        id=ConnectionId(*connection_ids(number)),
        integration_id=IntegrationId(new_id("int")),
        integration="crm",
        provider="generic",
        subject=f"user-{number}",
        state=LifecycleState.PENDING_CONSENT,
        created_at=now,
        changed_at=now,
        consent_deadline=now + timedelta(hours=1),
    )
