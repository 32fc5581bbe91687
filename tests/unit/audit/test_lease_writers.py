"""The writers of leases: what they remember, and what they do when a commit doesn't end well."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from evergrant_server import audit
from evergrant_server.audit.lease_ledger import LeaseLedger, RecordedLease, StaleClaim
from evergrant_server.audit.lease_writer_postgresql import PostgresLeaseWriter
from evergrant_server.audit.lease_writer_sqlite import SqliteLeaseWriter
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Store
from evergrant_server.store.database import sqlite
from tests.conformance.store.samples import ACME, an_app_of, granted
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S
from tests.unit.audit.claims import a_claim, leases_in_the_log


def sqlite_writer(ledger: LeaseLedger) -> SqliteLeaseWriter:
    if not isinstance(ledger._writer, SqliteLeaseWriter):
        pytest.skip("of SQLite")
    return ledger._writer


def postgres_writer(ledger: LeaseLedger) -> PostgresLeaseWriter:
    if not isinstance(ledger._writer, PostgresLeaseWriter):
        pytest.skip("of PostgreSQL")
    return ledger._writer


def file_of(database_url: str) -> Path:
    return Path(make_url(database_url).database or "")


async def test_what_is_remembered_is_read_again_after_any_other_commit(
    store: Store, ledger: LeaseLedger, database_url: str
):
    writer = sqlite_writer(ledger)
    connection, app = await granted(store), await an_app_of(store)
    for _ in range(2):  # the first begins the tree
        await ledger.record(a_claim(connection, app))
    driver, statements = writer._kept._driver, list[str]()
    assert driver is not None
    driver.set_trace_callback(statements.append)
    await ledger.record(a_claim(connection, app))
    assert not [statement for statement in statements if statement.startswith("SELECT")]
    with closing(sqlite3.connect(file_of(database_url))) as shell, shell:  # as another process would
        shell.execute("UPDATE connection SET revision = revision + 1")
    with pytest.raises(StaleClaim):
        await ledger.record(a_claim(connection, app))
    assert len(await leases_in_the_log(store)) == 3


async def test_a_full_disk_leases_nothing_and_the_next_lease_after_it_is_recorded(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch
):
    kept = sqlite_writer(ledger)._kept
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    driver = kept._driver
    assert driver is not None
    (pages,) = driver.execute("PRAGMA page_count").fetchone()
    driver.execute(f"PRAGMA max_page_count={pages}")
    long = a_claim(connection, app, scopes=("s" * 7_000,))
    with fails(ErrorCode.AUDIT_UNAVAILABLE) as full:
        for _ in range(20):
            await ledger.record(long)
    assert "the disk is full" in full.value.detail
    written = len(await leases_in_the_log(store))
    await ledger.record(long)
    assert len(await leases_in_the_log(store)) == written + 1
    assert (await audit.verify_log(store, ACME)).ok


async def test_a_commit_that_fails_leases_nothing(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch
):
    thread = sqlite_writer(ledger)._kept._thread
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    run = thread.run

    async def failing(work: partial[Any]) -> Any:
        if getattr(work, "args", ()) == ("COMMIT",):
            monkeypatch.setattr(thread, "run", run)
            raise sqlite3.OperationalError("disk I/O error")
        return await run(work)

    monkeypatch.setattr(thread, "run", failing)
    ended = await asyncio.gather(
        *(ledger.record(a_claim(connection, app)) for _ in range(3)), return_exceptions=True
    )
    assert [it.code for it in ended if isinstance(it, Failure)] == [ErrorCode.AUDIT_UNAVAILABLE] * 3
    await ledger.record(a_claim(connection, app))
    assert [seq for _, seq in await leases_in_the_log(store)] == [0, 1]
    assert (await audit.verify_log(store, ACME)).ok


async def test_a_ledger_that_is_cancelled_while_it_commits_leases_nothing(store: Store, ledger: LeaseLedger):
    kept = sqlite_writer(ledger)._kept
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    entered, go_on = threading.Event(), threading.Event()

    def hold(statement: str) -> None:
        if statement == "COMMIT":
            entered.set()
            go_on.wait(PATIENCE_S)

    assert kept._driver is not None
    kept._driver.set_trace_callback(hold)
    lease = asyncio.create_task(ledger.record(a_claim(connection, app)))
    async with asyncio.timeout(PATIENCE_S):
        while not entered.is_set():
            await asyncio.sleep(0.001)
    assert ledger._task is not None
    ledger._task.cancel()
    await asyncio.sleep(0.01)
    assert not lease.done()  # the COMMIT isn't over
    go_on.set()
    with fails(ErrorCode.AUDIT_UNAVAILABLE):
        await lease
    ledger._task = None
    assert not kept._driver.in_transaction
    assert (await audit.verify_log(store, ACME)).ok


async def test_a_lease_waits_for_another_process_that_writes(
    store: Store, ledger: LeaseLedger, database_url: str
):
    sqlite_writer(ledger)
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    with closing(sqlite3.connect(file_of(database_url), isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        lease = asyncio.create_task(ledger.record(a_claim(connection, app)))
        await asyncio.sleep(0.03)
        assert not lease.done()
        shell.execute("COMMIT")
        await lease


def checkpoint_number(log: Path) -> bytes:
    """Number and salt in the header of SQLite's write-ahead log: others once it has been begun anew."""
    return log.read_bytes()[12:20]


async def test_the_write_ahead_log_is_copied_beside_the_commits_and_begun_anew(
    store: Store, clock: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    if not store.is_sqlite:
        pytest.skip("of SQLite")
    monkeypatch.setattr(sqlite, "_CHECKPOINT_S", 0.005)
    connection, app = await granted(store), await an_app_of(store)
    ledger = LeaseLedger(store, "lease-1", clock)
    await ledger.start()
    log = file_of(database_url).with_name("evergrant.db-wal")
    log_numbers = set[bytes]()
    async with asyncio.timeout(PATIENCE_S):
        while len(log_numbers) < 3:  # what is copied twice lets leases write at the log's beginning
            await ledger.record(a_claim(connection, app, scopes=("s" * 7_000,)))
            log_numbers.add(await asyncio.to_thread(checkpoint_number, log))
    await ledger.stop()
    assert (await audit.verify_log(store, ACME)).ok


async def test_who_writes_next_begins_a_long_log_anew(store: Store, ledger: LeaseLedger, database_url: str):
    checkpoints = sqlite_writer(ledger)._kept._database.checkpoints
    connection, app = await granted(store), await an_app_of(store)
    log = file_of(database_url).with_name("evergrant.db-wal")
    numbers = list[bytes]()
    await asyncio.to_thread(checkpoints.end)  # nothing else begins it anew
    for is_long in (False, False, True):
        checkpoints.log_is_long = is_long
        await ledger.record(a_claim(connection, app))
        numbers.append(await asyncio.to_thread(checkpoint_number, log))
    assert numbers[0] == numbers[1] != numbers[2]


async def test_leases_are_written_at_once_also_of_several_tenants_and_with_last_uses(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch
):
    writer = postgres_writer(ledger)
    tenants = ACME, "other"
    claims = [
        a_claim(await granted(store, tenant=tenant), await an_app_of(store, tenant=tenant))
        for tenant in tenants
    ]
    await asyncio.gather(*(ledger.record(claim) for claim in claims))  # which begins the trees

    async def with_care(*_: object) -> Any:
        raise AssertionError("nothing has changed")

    monkeypatch.setattr(writer, "_write_with_care", with_care)
    ledger._last_uses.clear()
    await asyncio.gather(*(ledger.record(claim) for claim in claims * 3))
    await ledger.record(claims[0])
    assert len(await leases_in_the_log(store)) == 5
    for tenant in tenants:
        assert (await audit.verify_log(store, claims[tenants.index(tenant)].tenant)).ok


async def test_an_end_that_another_moved_is_read_again(store: Store, ledger: LeaseLedger):
    """As `accept_heads` does, and as a lost answer to a commit leaves it."""
    writer = postgres_writer(ledger)
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    before = dict(writer._ends)
    await ledger.record(a_claim(connection, app))
    writer._ends = before
    await ledger.record(a_claim(connection, app))
    assert [seq for _, seq in await leases_in_the_log(store)] == [0, 1, 2]
    assert (await audit.verify_log(store, ACME)).ok


async def test_two_revisions_of_one_row_in_a_batch_are_told_apart(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    for row, revision in (("app_revision", app.revision), ("generation", connection.generation)):
        claims = [a_claim(connection, app, **{row: revision + more}) for more in (0, 1)]
        ended = await asyncio.gather(*(ledger.record(claim) for claim in claims), return_exceptions=True)
        assert [type(it) for it in ended] == [RecordedLease, StaleClaim]
        with pytest.raises(StaleClaim):
            await ledger.record(claims[1])


async def test_a_database_that_defaults_to_snapshots_still_reads_rows_after_the_locks(
    store: Store, ledger: LeaseLedger
):
    """In one snapshot a batch would see rows as they were before it had their locks."""
    writer = postgres_writer(ledger)
    async with store.autocommit() as connection:
        await connection.execute(
            text(
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation ="
                " ''repeatable read''', current_database()); END $$"
            )
        )
    await store.close()  # sessions that began with the old default
    raw = await writer._kept.driver()
    assert await raw.fetchval("SHOW transaction_isolation") == "read committed"


async def test_a_revocation_between_two_batches_stops_the_next(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    async with store.write() as tx:
        await tx.connections.replace(connection.revocation_requested("x", NOW), expected=connection.revision)
    with pytest.raises(StaleClaim):
        await ledger.record(a_claim(connection, app))
