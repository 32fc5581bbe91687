"""What is over its age goes, in steps and by an index; what a legal hold keeps stays until it has ended."""

import sqlite3
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from activities.pruning import Periods, Pruning
from evergrant_server import audit
from evergrant_server.access.erasure import Order, put_hold
from evergrant_server.audit.erasure_orders import end_hold
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentKind, ConsentStatus
from evergrant_server.core.connections.erasure import LegalHold, TargetKind
from evergrant_server.core.ids import AttemptId, ConsentId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.crypto import KeyRing
from evergrant_server.store import HistoryExport, Store
from evergrant_server.store.audit_tables import AuditRow
from evergrant_server.store.connections.tables import AttemptRow, ConnectionRow, ConsentRow, HistoryRow
from evergrant_server.store.database import sqlite
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import columns_equal
from tests.conformance.store.samples import ACME, a_connection, a_consent, added, an_attempt
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW, lent
from tests.faults.refresh.test_statements import query_plans

ADMIN = RequestContext(by="app:admin")
OLD = NOW - timedelta(days=4000)
ROWS = 1200  # more than two steps
TABLES = (AttemptRow, ConsentRow, HistoryRow)
HELD = [TargetKind.CONNECTION, TargetKind.SUBJECT, TargetKind.TENANT]


async def a_life(store: Store, subject: str) -> Connection:
    """An ended connection with old attempts, consents, a history and records."""
    connection = await added(store, a_connection(subject=subject, generation=3))
    history = HistoryExport(
        tenant=ACME,
        connection_id=connection.id,
        workflow_id=f"connection:acme:{connection.id}",
        run_id=new_id("out"),
        exported_at=OLD,
        closed=True,
        last_event_id=1,
        events=[{}],
    )
    async with store.write() as tx:
        for _ in range(3):
            attempt = an_attempt(connection, id=AttemptId(new_id("att")), opened_at=OLD, send_by=OLD)
            await tx.attempts.open(attempt)
            await tx.attempts.close(attempt, AttemptOutcome.REFUSED, OLD)
            await tx.consents.add(a_consent(connection, id=ConsentId(new_id("cns")), expires_at=OLD), None)
        await tx.histories.add(history)
        await audit.append_all(tx, [a_record(connection.id)])
        ended = update(ConnectionRow).where(columns_equal(ConnectionRow, id=connection.id))
        await tx.connection.execute(ended.values(state="revoked", changed_at=OLD))
    return connection


def a_record(object: str, action: AuditAction = AuditAction.REFRESH_FAILED) -> AuditEntry:
    detail = {"reason": "why", "disabled": False}
    return AuditEntry(tenant=ACME, at=OLD, action=action, object=object, context=ADMIN, detail=detail)


async def left_of(store: Store, connection: Connection) -> dict[str, int]:
    """How many rows of each kind it still has, and records that say something."""
    counts: dict[str, int] = {}
    async with store.read() as tx:
        for table in TABLES:
            mine = columns_equal(table, connection_id=connection.id)
            query = select(func.count()).select_from(table).where(mine)
            counts[str(table.__tablename__)] = (await tx.connection.execute(query)).scalar_one()
        records = await audit.page(tx, ACME, object=connection.id)
    return {**counts, "audit": sum(bool(record.detail) for record in records)}


EVERYTHING = {"attempt": 3, "consent": 3, "history": 1, "audit": 1}
NOTHING = dict.fromkeys(EVERYTHING, 0)


async def held(store: Store, kind: TargetKind, connection: Connection, days: int | None = None) -> LegalHold:
    targets = {TargetKind.CONNECTION: connection.id, TargetKind.SUBJECT: connection.subject}
    order = Order(ACME, kind, targets.get(kind, ACME), "CASE-7", ADMIN, NOW)
    async with store.write() as tx:
        return await put_hold(tx, order, None if days is None else NOW + timedelta(days=days))


@pytest.mark.parametrize("kind", HELD)
async def test_what_is_held_stays_until_the_hold_has_ended(store: Store, clock: SetClock, kind: TargetKind):
    kept, gone = await a_life(store, "alice"), await a_life(store, "bob")
    hold = await held(store, kind, kept)
    pruning = Pruning(store, clock, Periods())
    await pruning.run()
    assert await left_of(store, kept) == EVERYTHING
    assert await left_of(store, gone) == (EVERYTHING if kind is TargetKind.TENANT else NOTHING)
    async with store.write() as tx:
        await end_hold(tx, hold, "over", ADMIN, clock.now())
    clock.advance(timedelta(days=1).total_seconds())
    await pruning.run()
    assert await left_of(store, kept) == NOTHING
    assert (await audit.verify_log(store, ACME)).problem is None


async def test_a_hold_whose_time_is_over_is_ended_and_recorded(store: Store, clock: SetClock):
    kept = await a_life(store, "alice")
    hold = await held(store, TargetKind.CONNECTION, kept, days=30)
    pruning = Pruning(store, clock, Periods())
    await pruning.run()
    assert await left_of(store, kept) == EVERYTHING
    clock.advance(timedelta(days=31).total_seconds())
    await pruning.run()
    assert await left_of(store, kept) == NOTHING
    async with store.read() as tx:
        ended = await audit.newest_record(tx, ACME, hold.id, AuditAction.HOLD_ENDED)
    assert ended is not None
    assert ended.context.by == "schedule"


async def test_the_first_and_the_newest_consent_of_a_live_connection_stay_and_those_of_its_grants(
    store: Store, clock: SetClock
):
    connection = await added(store, a_connection())
    done, failed = ConsentStatus.DONE, ConsentStatus.FAILED
    made = [
        a_consent(connection, id=ConsentId(new_id("cns")), created_at=OLD + timedelta(hours=hour), **facts)
        for hour, facts in enumerate(
            (
                {"status": failed, "expires_at": OLD},
                {"status": done, "expires_at": OLD},
                {"status": done, "expires_at": OLD},
                {"status": done, "expires_at": OLD, "kind": ConsentKind.IMPORT},
                {"status": done, "expires_at": OLD},
                {"status": failed, "expires_at": OLD},
                {"status": failed, "expires_at": OLD},
            )
        )
    ]
    async with store.write() as tx:
        for consent in made:
            await tx.consents.add(consent, None)
    await Pruning(store, clock, Periods()).run()
    async with store.read() as tx:
        left = [await tx.consents.get(ACME, consent.id) is not None for consent in made]
    assert left == [True, True, False, True, True, False, True]


async def test_a_log_is_pruned_in_steps_and_what_decides_is_kept(store: Store, clock: SetClock):
    async with store.write() as tx:
        await audit.append_all(tx, [a_record(f"con_{number}") for number in range(ROWS)])
        await audit.append_all(tx, [a_record("app_1", AuditAction.APP_PUT)])
        await audit.append_all(tx, [a_record("con_new").__replace__(at=NOW)])
    await Pruning(store, clock, Periods()).run()
    async with store.read() as tx:
        query = select(col(AuditRow.object)).where(columns_equal(AuditRow, erased_mac=None, tenant=ACME))
        assert set((await tx.connection.execute(query)).scalars()) == {"app_1", "con_new"}
    assert (await audit.verify_log(store, ACME)).problem is None


async def test_a_pass_over_many_rows_uses_indexes_and_little_memory(
    tmp_path: Path, ring: KeyRing, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    statements, configure = set[str](), sqlite.configure

    def traced(driver: sqlite3.Connection, record: object) -> None:
        configure(driver, record)
        driver.set_trace_callback(statements.add)

    async with lent("sqlite", tmp_path) as url:
        monkeypatch.setattr(sqlite, "configure", traced)
        store = await Store.open(url, ring, clock)
        connection = await a_life(store, "alice")
        await held(store, TargetKind.CONNECTION, await a_life(store, "bob"))
        async with store.write() as tx:
            attempts = [
                an_attempt(connection, id=new_id("att"), opened_at=OLD, send_by=OLD).model_dump()
                | {"kind": "refresh", "outcome": "refused", "closed_at": OLD + timedelta(seconds=number)}
                for number in range(20 * ROWS)
            ]
            await tx.connection.execute(table_of(AttemptRow).insert(), attempts)
        del attempts
        statements.clear()
        tracemalloc.start()
        await Pruning(store, clock, Periods()).run()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert await left_of(store, connection) == NOTHING
        assert most < 20 * 2**20, "it would hold all rows"
        ours = [text for text in statements if text.startswith(("SELECT", "DELETE", "UPDATE"))]
        steps = await query_plans(store, ours)
        big = ("attempt", "consent", "history", "audit", "outbox", "idempotency", "connection")
        scans = [step for step in steps if step.startswith("SCAN") and step.split()[1] in big]
        assert [step for step in scans if "INDEX" not in step] == []
        await store.close()
