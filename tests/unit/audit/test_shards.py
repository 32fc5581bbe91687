"""Shards of the audit log: the installation's heads log knows them, so that one that is gone is missed."""

from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.audit.appending import HEADS
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditRow, AuditTreeRow
from tests.unit.audit.test_appending import ACME, MAIN, an_entry, put

_ours = col(AuditTreeRow.tenant) == ACME


async def without(store: Store, *tables: Any, tenants: tuple[str, ...], shards: tuple[str, ...]) -> None:
    """Delete what these tables have of the shards of these tenants, as a writer of the database does."""
    async with store.write() as tx:
        for table in tables:
            mine = col(table.tenant).in_(tenants) & col(table.shard).in_(shards)
            await tx.connection.execute(delete(table).where(mine))


async def with_three_shards(store: Store) -> None:
    async with store.write() as tx:
        await tx.tenants.begin(ACME)
    await put(store, an_entry(), an_entry())
    await put(store, an_entry(), shard="api-1")
    await put(store, an_entry(), shard="api-2")
    assert (await audit.verify_log(store, ACME)).ok
    assert await audit.broken_heads(store) == []


@pytest.mark.parametrize(
    ("tenants", "shards", "named"),
    [
        (("acme",), ("api-1",), ["api-1"]),
        (("acme",), (MAIN,), [MAIN]),
        (("acme",), (MAIN, "api-1", "api-2"), ["api-1", "api-2", MAIN]),
    ],
)
async def test_a_shard_that_was_deleted_with_its_end_is_missed(
    store: Store, tenants: tuple[str, ...], shards: tuple[str, ...], named: list[str]
):
    await with_three_shards(store)
    await without(store, AuditRow, AuditTreeRow, tenants=tenants, shards=shards)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.shard, verdict.seq) == (False, named[0], 0)
    assert verdict.problem is not None
    assert "deleted" in verdict.problem
    assert [row.row for row in await audit.broken_heads(store)] == [f"acme/{shard}" for shard in named]
    assert await audit.accept_heads(store, {f"acme/{shard}" for shard in named}) == [
        f"acme/{shard}" for shard in named
    ]
    assert await audit.broken_heads(store) == []


async def test_a_log_that_was_deleted_with_all_that_tells_of_it_is_missed(store: Store):
    await with_three_shards(store)
    shards = (MAIN, HEADS, "api-1", "api-2")
    await without(store, AuditRow, AuditTreeRow, tenants=("acme", "-"), shards=shards)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.shard) == (False, "-/heads")


async def test_the_installations_own_log_is_verified_too(store: Store):
    await with_three_shards(store)
    await without(store, AuditRow, tenants=("acme",), shards=("api-1",))
    async with store.write() as tx:
        births = (col(AuditRow.tenant) == "-") & (col(AuditRow.object) == "acme/api-1")
        await tx.connection.execute(delete(AuditRow).where(births))
    await without(store, AuditTreeRow, tenants=("acme",), shards=("api-1",))
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.shard, verdict.seq) == (False, "-/heads", 1)


async def test_a_shard_that_nobody_began_is_named(store: Store):
    await with_three_shards(store)
    async with store.write() as tx:
        shard = update(AuditRow).where(col(AuditRow.shard) == "api-1").values(shard="api-9")
        await tx.connection.execute(shard)
        moved = update(AuditTreeRow).where(_ours, col(AuditTreeRow.shard) == "api-1")
        await tx.connection.execute(moved.values(shard="api-9"))
    assert {row.row for row in await audit.broken_heads(store)} == {"acme/api-1", "acme/api-9"}
    assert not (await audit.verify_log(store, ACME)).ok
