"""Leases are found by their objects before they are filed and afterwards, beside all other records."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from activities.audit_log import AuditLogKeeper
from evergrant_server import audit
from evergrant_server.audit import filing
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.audit.erasing import erase_object
from evergrant_server.audit.filing import file_leases
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.audit.records import Window
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditFiledRow, AuditRow, AuditTreeRow
from evergrant_server.store.database.columns import table_of
from tests.conformance.store.samples import ACME, an_app_of, granted
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.patience import PATIENCE_S
from tests.unit.audit.claims import a_claim
from tests.unit.audit.test_appending import an_entry

_FILED, _TREES = table_of(AuditFiledRow), table_of(AuditTreeRow)


class Life:
    """Two connections with leases and other records, of which some have the same moment."""

    def __init__(self, store: Store, ledger: LeaseLedger, connections: list[Connection], app: App) -> None:
        self._store, self._ledger, self.connections, self.app = store, ledger, connections, app

    @classmethod
    async def of(cls, store: Store, ledger: LeaseLedger) -> "Life":
        connections = [await granted(store, subject=f"s{number}") for number in range(2)]
        return cls(store, ledger, connections, await an_app_of(store))

    async def go_on(self) -> None:
        """Twelve leases, and six other records."""
        for step in range(6):
            at = NOW + timedelta(seconds=step // 2)
            for connection in self.connections:
                await self._ledger.record(a_claim(connection, self.app, at=at))
            async with self._store.write() as tx:
                await audit.append(tx, an_entry(self.connections[step % 2].id, at=at))


async def of_object(store: Store, object: str, *, newest_first: bool = False) -> list[AuditRecord]:
    """All records about the object, in pages of two."""
    records: list[AuditRecord] = []
    async with store.read() as tx:
        while page := await audit.page(
            tx,
            ACME,
            object=object,
            limit=2,
            after=audit.page_cursor(records[-1]) if records else None,
            newest_first=newest_first,
        ):
            records += page
    return records


async def filed(store: Store) -> int:
    async with store.read() as tx:
        return (await tx.connection.execute(select(func.count()).select_from(_FILED))).scalar_one()


@pytest.mark.parametrize("after", [0, 1, 3], ids=["never", "once", "three times"])
async def test_the_records_of_an_object_are_the_same_whatever_is_filed(
    store: Store, ledger: LeaseLedger, after: int
):
    life = await Life.of(store, ledger)
    for _ in range(after):
        await life.go_on()
        await file_leases(store)
    await life.go_on()  # a tail that isn't filed
    async with store.read() as tx:
        everything = await audit.page(tx, ACME, limit=500)
    for connection in life.connections:
        expected = [record for record in everything if record.object == connection.id]
        assert len(expected) == 9 * (after + 1)
        assert await of_object(store, connection.id) == expected
        assert await of_object(store, connection.id, newest_first=True) == expected[::-1]
        async with store.read() as tx:
            window = Window(NOW + timedelta(seconds=1), NOW + timedelta(seconds=2))
            within = await audit.page(tx, ACME, object=connection.id, window=window)
        assert within == [record for record in expected if record.at == window.since]
    assert await filed(store) == 12 * after
    assert (await audit.verify_log(store, ACME)).ok


async def test_each_lease_is_filed_once_by_workers_that_race(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(filing, "_AT_ONCE", 2)
    await (await Life.of(store, ledger)).go_on()
    ended = await asyncio.gather(*(file_leases(store) for _ in range(3)), return_exceptions=True)
    assert all(error is None or is_conflict(error) for error in ended)
    await file_leases(store)
    assert await filed(store) == 12
    async with store.read() as tx:
        behind = select(func.count()).select_from(_TREES).where(_TREES.c.filed != _TREES.c.size)
        assert (await tx.connection.execute(behind)).scalar_one() == 0


def is_conflict(error: BaseException) -> bool:
    return isinstance(error, Failure) and error.code is ErrorCode.STORE_CONFLICT


async def test_records_that_no_ledger_writes_leave_nothing_to_file(store: Store):
    async with store.write() as tx:
        await audit.append(tx, an_entry())
        sizes = (await tx.connection.execute(select(_TREES.c.filed, _TREES.c.size))).all()
    assert sizes
    assert all(filed == size for filed, size in sizes)
    async with store.write() as tx:  # a lease that goes another way is filed all the same
        await audit.append(tx, an_entry(action=AuditAction.LEASE_ISSUED))
    await file_leases(store)
    assert await filed(store) == 1


async def test_leases_are_erased_with_their_object_filed_or_not(store: Store, ledger: LeaseLedger):
    life = await Life.of(store, ledger)
    await life.go_on()
    await file_leases(store)
    first, second = life.connections
    await ledger.record(a_claim(first, life.app))
    async with store.write() as tx:
        erased, last = await erase_object(tx, ACME, first.id, None)
    assert (erased, last) == (10, None)
    assert {record.detail == {} for record in await of_object(store, first.id)} == {True}
    assert not [record for record in await of_object(store, second.id) if not record.detail]
    assert (await audit.verify_log(store, ACME)).ok


async def test_a_worker_files_what_is_leased(store: Store, ledger: LeaseLedger, clock: SetClock):
    await (await Life.of(store, ledger)).go_on()
    keeper = AuditLogKeeper(store, clock, HeadsLog(store, clock, "log.example"), [], timedelta(minutes=15))
    working = asyncio.create_task(keeper.run(timedelta(milliseconds=10)))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while await filed(store) < 12:
                await asyncio.sleep(0.01)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_the_records_of_an_object_are_read_by_indexes(store: Store, ledger: LeaseLedger):
    if not store.is_sqlite:
        pytest.skip("of SQLite, whose plans need no rows")
    life = await Life.of(store, ledger)
    await life.go_on()
    async with store.write() as tx:
        await tx.connection.execute(update(_TREES).values(filed=3))
        about = [table_of(AuditRow).c.seq], ACME, life.connections[0].id
        for query, order in await filing.queries_about(tx, *about):
            statement = query.order_by(*order).limit(5).compile(compile_kwargs={"literal_binds": True})
            rows = await tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
            plan = [str(row["detail"]) for row in rows.mappings()]
            assert not [step for step in plan if step.startswith("SCAN")], plan
            assert not [step for step in plan if "ix_audit_tenant_at" in step], plan
