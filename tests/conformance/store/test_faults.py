"""A database that can't be used is one clear failure, at the start and in the middle of life."""

import asyncio
import sqlite3
from contextlib import nullcontext
from pathlib import Path

import pytest
from sqlalchemy import text

from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto import KeyRing
from evergrant_server.store import LeaseRows, Store
from evergrant_server.store.database import schema, sqlite
from evergrant_server.store.database.engine import Pool, asyncpg_driver
from tests.conformance.store.samples import ACME, a_connection, added, granted
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW, Postgres, sqlite_url
from tests.fakes.failures import fails
from tests.fakes.patience import eventually


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:pw-canary@localhost/x",
        "not a url",
        "sqlite://",
        "postgresql+asyncpg://u:pw-canary@127.0.0.1:9/none",
        "postgresql+asyncpg://u:pw-canary@/none?host=/nonexistent",
        "sqlite:////proc/nowhere/x.db",
    ],
)
async def test_an_unusable_database_is_unavailable_and_quotes_no_password(
    url: str, ring: KeyRing, clock: SetClock
):
    for use in (lambda: Store.open(url, ring, clock), lambda: schema.upgrade(url)):
        with fails(ErrorCode.STORE_UNAVAILABLE) as caught:
            await use()
        assert "pw-canary" not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_a_sqlite_file_locked_by_another_process_is_unavailable(
    tmp_path: Path, ring: KeyRing, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    await schema.upgrade(sqlite_url(tmp_path))
    store = await Store.open(sqlite_url(tmp_path), ring, clock)
    other = sqlite3.connect(tmp_path / "evergrant.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with fails(ErrorCode.STORE_UNAVAILABLE):
            await added(store, a_connection())
        async with store.read() as tx:  # readers go on
            assert await tx.connections.page(ACME) == []
    finally:
        other.close()
    await added(store, a_connection())
    await store.close()


async def test_what_runs_fails_when_postgresql_drops_its_connections_and_what_comes_later_does_not(
    postgres_server: Postgres, ring: KeyRing, clock: SetClock
):
    url = await postgres_server.fresh()
    name = url.partition("?")[0].rpartition("/")[2]
    store = await Store.open(url, ring, clock)
    connection, rows = await granted(store), LeaseRows(store)
    assert await rows.load(ACME, connection.id) is not None
    async with store.in_pool(Pool.LEASES).autocommit() as pooled:
        driver = await asyncpg_driver(pooled)

    async def ended() -> bool:
        return driver.is_closed()

    with fails(ErrorCode.STORE_UNAVAILABLE):
        async with store.write() as tx:
            await postgres_server.admin(
                f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE datname = '{name}'"
            )
            await tx.connection.execute(text("SELECT 1"))
    await eventually(ended)
    assert await rows.load(ACME, connection.id) is not None
    await store.close()
    await postgres_server.drop(url)


async def test_a_value_the_database_cannot_hold_is_an_invalid_request(store: Store):
    impossible = a_connection(subject="a\x00b")  # PostgreSQL has no NUL in text, SQLite has
    with nullcontext() if store.is_sqlite else fails(ErrorCode.INVALID_REQUEST):
        await added(store, impossible)


async def test_a_missing_table_is_a_schema_mismatch(store: Store):
    async with store.write() as tx:
        await tx.connection.execute(text("DROP TABLE outbox"))
    with fails(ErrorCode.SCHEMA_MISMATCH):
        async with store.read() as tx:
            await tx.outbox.depth(NOW)


async def test_a_cancelled_writer_leaves_the_store_usable(store: Store):
    began = asyncio.Event()

    async def hang() -> None:
        async with store.write() as tx:
            await tx.connections.add(a_connection())
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await added(store, a_connection())
