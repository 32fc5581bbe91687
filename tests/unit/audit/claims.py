"""A running ledger, claims to lease by, and what it wrote."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server import audit
from evergrant_server.audit.lease_ledger import LeaseClaim, LeaseLedger
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import KeyId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store
from tests.conformance.store.samples import ACME
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW

KEY = KeyId(new_id("key"))


@pytest_asyncio.fixture
async def ledger(store: Store, clock: SetClock) -> AsyncIterator[LeaseLedger]:
    running = LeaseLedger(store, "lease-1", clock)
    await running.start()
    yield running
    await running.stop()


def a_claim(connection: Connection, app: App, **changes: Any) -> LeaseClaim:
    values: dict[str, Any] = {
        "tenant": connection.tenant,
        "connection_id": connection.id,
        "connection_revision": connection.revision,
        "app_id": app.id,
        "app_revision": app.revision,
        "key_id": KEY,
        "valid_until": NOW + timedelta(days=90),
        "generation": connection.generation,
        "context": RequestContext(by="app:billing", trace_id="b" * 32),
        "scopes": ("repo",),
        "at": NOW,
    }
    return LeaseClaim(**{**values, **changes})


def count_commits(ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    commits: list[None] = []
    write = ledger._write

    async def counted(*batch: Any) -> Any:
        written = await write(*batch)
        commits.append(None)
        return written

    monkeypatch.setattr(ledger, "_write", counted)
    return commits


async def leases_in_the_log(store: Store) -> list[tuple[str, int]]:
    async with store.read() as tx:
        records = await audit.page(tx, ACME, limit=500)
    return [(it.object, it.seq) for it in records if it.action is AuditAction.LEASE_ISSUED]
