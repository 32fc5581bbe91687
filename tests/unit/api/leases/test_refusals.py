"""Refusals of many callers at once: each is recorded, and together they are few transactions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from evergrant_server.access.recording import RefusalLog
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction
from tests.fakes.api import OTHER, TENANT, Api


class Counting:
    """A store that counts its write transactions."""

    def __init__(self, store: Store) -> None:
        self._store, self.writes = store, 0

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        self.writes += 1
        async with self._store.write() as tx:
            yield tx


async def test_hundreds_of_callers_whose_wait_ends_at_once_are_two_transactions_of_their_tenant(api: Api):
    await api.integration()
    await api.integration(tenant=OTHER)
    store = Counting(api.store)
    log = RefusalLog(cast(Store, store))
    refused = [
        AuditEntry(
            tenant=tenant,
            at=api.clock.now(),
            action=AuditAction.LEASE_REFUSED,
            object=f"con_{number:022}",
            context=RequestContext(by="app:sync"),
            detail={"app": "app_1", "code": "refresh_pending"},
        )
        for tenant in (TENANT, OTHER)
        for number in range(150)
    ]
    await asyncio.gather(*(log.record(entry) for entry in refused))
    await log.stop()
    assert store.writes == 4, "the first of each tenant, then those that came meanwhile"
    records = await api.records(AuditAction.LEASE_REFUSED)
    assert sorted(record.object for record in records) == sorted(
        entry.object for entry in refused if entry.tenant == TENANT
    )
