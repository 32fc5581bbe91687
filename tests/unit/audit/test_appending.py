"""Trees: gapless, and committed with what they record."""

import asyncio
import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.audit.appending import main_shard
from evergrant_server.audit.merkle_tree import Frontier
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.crypto import Role
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditRow
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

ACME = Tenant("acme")
MAIN = main_shard(Role.WORKER)


def an_entry(object: str = "con_1", **changes: Any) -> AuditEntry:
    values: dict[str, Any] = {
        "tenant": ACME,
        "at": NOW,
        "action": AuditAction.GRANT_REFRESHED,
        "object": object,
        "context": RequestContext(by="schedule", trace_id="a" * 32),
        "detail": {"generation": 2, "scopes": ["repo"], "share": 0.1, "odd": "\u0000\ud7ff\U0001f512"},
    }
    return AuditEntry(**{**values, **changes})


@pytest.mark.parametrize(
    ("scopes", "kept"),
    [
        (["x" * 400_000], 0),
        (["a", "x" * 9_000, "b"], 1),
        (["\ud800" * 9_000, "a"], 0),
        ([f"{n:08}" for n in range(50_000)], 910),
    ],
    ids=["one huge", "a huge one after a small one", "no text", "many"],
)
async def test_a_record_carries_a_bounded_part_of_its_scopes_with_count_and_hash(
    store: Store, scopes: list[str], kept: int
):
    """A provider decides how long the scopes of its reply are: an install is as bounded as a lease."""
    detail = {"generation": 1, "scopes": scopes, "consent": "csn_1"}
    await put(store, an_entry(action=AuditAction.GRANT_INSTALLED, detail=detail))
    async with store.read() as tx:
        (record,) = await audit.page(tx, ACME, limit=10)
    whole = hashlib.sha256(" ".join(scopes).encode("utf-8", "surrogatepass")).hexdigest()
    bounded = {"scopes": scopes[:kept], "scope_count": len(scopes), "scopes_sha256": whole}
    assert record.detail == detail | bounded
    assert (await audit.verify_log(store, ACME)).ok


async def test_scopes_within_the_bound_are_recorded_whole(store: Store):
    detail = {"scopes": ["s" * 90] * 90}
    await put(store, an_entry(detail=detail))
    async with store.read() as tx:
        (record,) = await audit.page(tx, ACME, limit=10)
    assert record.detail == detail


async def put(store: Store, *entries: AuditEntry, shard: str = MAIN) -> None:
    for entry in entries:
        async with store.write() as tx:
            await audit.append(tx, entry, shard=shard)


async def test_records_follow_each_other_and_come_back_equal(store: Store):
    provenance = Provenance(workflow_id="connection:acme:con_1", run_id="run-1", event_id=17)
    entries = [an_entry(), an_entry("con_2", provenance=provenance), an_entry(detail={})]
    async with store.write() as tx:
        records = [await audit.append(tx, entry) for entry in entries]
    assert [record.seq for record in records] == [0, 1, 2]
    assert {record.shard for record in records} == {MAIN}
    async with store.read() as tx:
        assert await audit.page(tx, ACME, limit=10) == records
        assert await audit.page(tx, ACME, object="con_2", limit=10) == [records[1]]
        assert await audit.page(tx, Tenant("other"), limit=10) == []
    assert [record.provenance for record in records] == [None, provenance, None]
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.records) == (True, 3)
    root = Frontier().appended(bytes.fromhex(record.hash) for record in records).root
    assert verdict.heads[MAIN] == (3, root.hex())


async def test_a_body_is_hashed_as_it_is_stored_and_is_unlike_every_other(store: Store):
    await put(store, an_entry(), an_entry())
    async with store.read() as tx:
        rows = (
            (await tx.connection.execute(select(AuditRow).where(col(AuditRow.tenant) == ACME)))
            .mappings()
            .all()
        )
    bodies = [json.loads(row["body"]) for row in rows]
    for row, body in zip(rows, bodies, strict=True):
        assert hashlib.sha256(b"\x00" + row["body"].encode("ascii")).digest() == row["leaf"]
        assert list(body) == ["v", "at", "action", "object", "by", "trace", "detail", "s"]
    salts = {body.pop("s") for body in bodies}
    assert [len(bytes.fromhex(salt)) for salt in salts] == [16, 16]
    assert bodies[0] == bodies[1]


async def test_a_rolled_back_record_leaves_no_gap(store: Store):
    await put(store, an_entry())
    with fails(ErrorCode.STORE_CONFLICT):
        async with store.write() as tx:
            await audit.append(tx, an_entry())
            raise Failure(ErrorCode.STORE_CONFLICT)
    await put(store, an_entry())
    async with store.read() as tx:
        assert [record.seq for record in await audit.page(tx, ACME, limit=5)] == [0, 1]
    assert (await audit.verify_log(store, ACME)).ok


async def test_concurrent_writers_share_a_tree_without_gaps(store: Store):
    await asyncio.gather(*(put(store, an_entry(f"con_{n}")) for n in range(12)))
    async with store.read() as tx:
        seqs = sorted(record.seq for record in await audit.page(tx, ACME, limit=50))
    assert seqs == list(range(12))
    assert (await audit.verify_log(store, ACME)).ok


async def test_shards_and_tenants_have_trees_of_their_own(store: Store):
    await put(store, an_entry(), an_entry(tenant="other"))
    await put(store, an_entry(), an_entry(), shard="lease-1")
    verdict = await audit.verify_log(store, ACME)
    assert {shard: head.size for shard, head in verdict.heads.items()} == {MAIN: 1, "lease-1": 2}
    assert (await audit.verify_log(store, Tenant("nobody"))).ok


async def test_the_last_end_of_an_object_counts_whatever_the_clocks_of_its_writers_say(store: Store):
    """Their records stand in several trees, and only their moments tell which came last."""
    late = NOW + timedelta(hours=1)
    actions = (AuditAction.TENANT_DISABLED, AuditAction.TENANT_ENABLED, AuditAction.TENANT_DISABLED)
    for shard, (at, action) in enumerate(zip((late, NOW, NOW), actions, strict=True)):
        await put(store, an_entry("acme", at=at, action=action), shard=f"main-{7 - shard}")
    async with store.read() as tx:
        records = await audit.page(tx, ACME)
    assert [record.action for record in records] == list(actions)
    assert records[-1].at == late + timedelta(microseconds=2)
    await put(store, an_entry("acme", at=NOW))
    async with store.read() as tx:
        assert (await audit.page(tx, ACME))[0].at == NOW, "what ends nothing keeps its moment"
    assert (await audit.verify_log(store, ACME)).ok


async def test_pages_go_on_where_the_last_one_ended(store: Store):
    entries = [an_entry(at=NOW + timedelta(seconds=n // 2)) for n in range(9)]
    for n, entry in enumerate(entries):
        await put(store, entry, shard=("a", "b")[n % 2])
    seen: list[tuple[Any, str, int]] = []
    after: str | None = None
    async with store.read() as tx:
        while page := await audit.page(tx, ACME, after=after, limit=4):
            seen += [(it.at, it.shard, it.seq) for it in page]
            after = audit.page_cursor(page[-1])
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen)) == 9


@pytest.mark.parametrize("cursor", ["", "x", "bm90IGpzb24", "WzEsMiwzXQ", "eyJhIjoxfQ", "W10", "é"])
async def test_a_forged_cursor_is_an_invalid_request(store: Store, cursor: str):
    with fails(ErrorCode.INVALID_REQUEST) as caught:
        async with store.read() as tx:
            await audit.page(tx, ACME, after=cursor, limit=5)
    assert caught.value.context == {"field": "after"}
