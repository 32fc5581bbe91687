"""The cost of the audit log: the lease ledger alone, against one commit for each record."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import cycle
from time import perf_counter

from sqlalchemy import text

from bench.bounds import Bounds
from bench.installation import TENANT, Installation
from evergrant_server import audit
from evergrant_server.audit.lease_ledger import LeaseClaim, LeaseLedger
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import AppId, ConnectionId, KeyId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store

CALLERS = (16, 64)
_SHARD, _PLAIN = "bench", "bench-plain"
_KEY = KeyId(new_id("key"))
_ASKED = RequestContext(by="app:pipeline", trace_id="0af7651916cd43dd8448eb211c80319c")


@dataclass(frozen=True)
class LedgerRate:
    """One row. Rates are records a second; `batch` is the mean number of records in a commit."""

    store: str
    callers: int
    ledger: float
    batch: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.ledger / self.plain


async def measure(store: str, ready: Installation, bounds: Bounds) -> list[LedgerRate]:
    """Measure callers that wait for their record's commit: through the ledger, then one by one."""
    settings, clock = ready.settings, SystemClock()
    opened = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.API), clock)
    claims = cycle([_claim(ready, number) for number in range(len(ready.connections))])
    ledger = LeaseLedger(opened, _SHARD, clock)

    async def grouped() -> None:
        await ledger.record(replace(next(claims), at=clock.now()))

    async def alone() -> None:
        async with opened.write() as tx:
            await audit.append(tx, _entry(next(claims)), shard=_PLAIN)

    rates: list[LedgerRate] = []
    await ledger.start()
    try:
        for callers in CALLERS:
            records, commits = await _head(opened)
            rate = await _rate(grouped, callers, bounds)
            more_records, more_commits = await _head(opened)
            batch = (more_records - records) / (more_commits - commits)
            rates.append(LedgerRate(store, callers, rate, batch, await _rate(alone, callers, bounds)))
    finally:
        await ledger.stop()
        await opened.close()
    return rates


async def _rate(work: Callable[[], Awaitable[None]], callers: int, bounds: Bounds) -> float:
    """How often per second `work` completes, with this number of callers in closed loops."""
    until = perf_counter() + bounds.seconds / 2
    done = 0

    async def call() -> None:
        nonlocal done
        while perf_counter() < until and done < bounds.most:
            await work()
            done += 1

    began = perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (perf_counter() - began)


async def _head(store: Store) -> tuple[int, int]:
    """Records in the ledger's shard, and its row's revision, which every commit raises by one."""
    query = text("SELECT size, revision FROM audit_tree WHERE tenant = :tenant AND shard = :shard")
    async with store.read() as tx:
        row = (await tx.connection.execute(query, {"tenant": TENANT, "shard": _SHARD})).one_or_none()
    return (0, 0) if row is None else (row[0], row[1])


def lease_claim(
    tenant: Tenant,
    connection_id: ConnectionId,
    revision: int,
    generation: int,
    app_id: AppId,
    app_revision: int,
    *,
    at: datetime,
) -> LeaseClaim:
    """A claim of these revisions, with a key that outlives the run."""
    return LeaseClaim(
        tenant=tenant,
        connection_id=connection_id,
        connection_revision=revision,
        app_id=app_id,
        app_revision=app_revision,
        key_id=_KEY,
        valid_until=at + timedelta(days=1),
        generation=generation,
        context=_ASKED,
        scopes=("read", "write"),
        at=at,
    )


def _claim(ready: Installation, number: int) -> LeaseClaim:
    row, app = ready.connections[number], ready.app
    return lease_claim(TENANT, row.id, row.revision, row.generation, app.id, app.revision, at=row.created_at)


def _entry(claim: LeaseClaim) -> AuditEntry:
    """The record that the ledger writes for this claim."""
    return AuditEntry(
        tenant=claim.tenant,
        at=SystemClock().now(),
        action=AuditAction.LEASE_ISSUED,
        object=claim.connection_id,
        context=claim.context,
        detail={"app": claim.app_id, "generation": claim.generation, "scopes": list(claim.scopes)},
    )
