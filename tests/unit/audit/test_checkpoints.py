"""Heads of trees that have grown, one checkpoint over them, and proofs that the client accepts offline."""

import asyncio
import base64
import json
from typing import Any

import pytest
from evergrant.audit.notes import PLAIN, Checkpoint, VerifierKey
from evergrant.audit.receipts import Receipt
from evergrant.audit.tree import require_consistent
from sqlalchemy import func, select, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.api.audit_proofs import receipt_view
from evergrant_server.audit.appending import HEADS, begin_tree
from evergrant_server.audit.checkpoints import heads, proofs
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store
from evergrant_server.store.audit.checkpoints import AuditCheckpointRow, AuditLogKeyRow
from evergrant_server.store.audit_tables import AuditNodeRow, AuditRow, AuditTreeRow
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

ACME, GLOBEX = Tenant("acme"), Tenant("globex")
NAME = "evergrant.example/audit"


@pytest.fixture
def log(store: Store, clock: SetClock) -> HeadsLog:
    return HeadsLog(store, clock, NAME)


async def append(store: Store, tenant: Tenant = ACME, shard: str = "main-1", count: int = 1) -> None:
    entry = AuditEntry(
        tenant=tenant,
        at=NOW,
        action=AuditAction.GRANT_REFRESHED,
        object="con_1",
        context=RequestContext(by="schedule", trace_id="a" * 32),
        detail={},
    )
    async with store.write() as tx:
        await audit.append_all(tx, [entry] * count, shard=shard)


async def public_key(store: Store) -> VerifierKey:
    async with store.read() as tx:
        key = await tx.checkpoints.key()
    assert key is not None
    return VerifierKey(key.name, PLAIN, key.public)


async def receipt_of(store: Store, index: int, tenant: Tenant = ACME, shard: str = "main-1") -> Receipt:
    async with store.read() as tx:
        receipt = await proofs.receipt(tx, tenant, shard, index)
    assert receipt is not None
    return Receipt.parse(receipt_view(receipt).model_dump_json())


async def marked(store: Store) -> list[tuple[str, str]]:
    async with store.read() as tx:
        return await tx.checkpoints.marked(("", ""), 100)


async def count(store: Store, table: Any) -> int:
    async with store.read() as tx:
        return (await tx.connection.execute(select(func.count()).select_from(table))).scalar_one()


async def test_a_tree_that_has_begun_gets_its_head_with_its_first_record(store: Store, log: HeadsLog):
    """A process begins the tree of its leases before it records the first one."""
    async with store.write() as tx:
        await begin_tree(tx, ACME, "lease-1")
    first = await log.advance()
    assert first is not None
    assert (await audit.verify_log(store, ACME)).ok
    assert await marked(store) == []
    await append(store, shard="lease-1")
    second = await log.advance()
    assert second is not None
    assert (first.tree.size, second.tree.size) == (1, 2)
    assert (await audit.verify_log(store, ACME)).ok


async def test_every_record_has_a_receipt_that_holds_offline(store: Store, log: HeadsLog):
    for tenant, shard, size in ((ACME, "main-1", 3), (ACME, "main-2", 1), (GLOBEX, "main-1", 2)):
        await append(store, tenant, shard, size)
    checkpoint = await log.advance()
    assert checkpoint is not None
    key = await public_key(store)
    Checkpoint.parse(checkpoint.tree.note).require_signed(key)
    for tenant, shard, size in ((ACME, "main-1", 3), (ACME, "main-2", 1), (GLOBEX, "main-1", 2)):
        for index in range(size):
            receipt = await receipt_of(store, index, tenant, shard)
            verified = receipt.verified(key, tenant=tenant, record=f"{shard}/{index}")
            assert verified.body is not None
            assert verified.body["action"] == "grant.refreshed"
            async with store.read() as tx:
                assert await proofs.receipt(tx, tenant, shard, size) is None


async def test_a_quiet_log_is_left_alone(store: Store, log: HeadsLog):
    await append(store)
    while await log.advance() is not None:
        pass
    assert await marked(store) == []
    heads_before = await count(store, AuditCheckpointRow)
    assert await log.advance() is None
    assert await count(store, AuditCheckpointRow) == heads_before
    await append(store)
    assert await marked(store) == [(ACME, "main-1")]
    assert await log.advance() is not None


async def test_each_checkpoint_extends_every_one_before(store: Store, log: HeadsLog):
    sizes: list[tuple[int, bytes]] = [(0, b"")]
    for number in range(6):
        await append(store, shard=f"main-{number}")
        checkpoint = await log.advance()
        assert checkpoint is not None
        sizes.append((checkpoint.tree.size, checkpoint.tree.root))
    newest = sizes[-1]
    async with store.read() as tx:
        for size, root in sizes[1:]:
            extension = await proofs.extension(tx, size)
            assert extension is not None
            require_consistent(size, root, *newest, extension.path)
        assert await proofs.extension(tx, newest[0] + 1) is None


async def test_proofs_read_tiles_once_there_are_some(store: Store, log: HeadsLog):
    await append(store, count=700)
    await log.advance()
    async with store.read() as tx:
        nodes = await tx.checkpoints.nodes(ACME, "main-1", 1, 0, 10)
    assert sorted(nodes) == [0, 1]
    key = await public_key(store)
    for index in (0, 255, 256, 511, 512, 699):
        (await receipt_of(store, index)).verified(key)


async def test_a_node_that_isnt_written_yet_is_made(store: Store, log: HeadsLog):
    await append(store, count=700)
    await log.advance()
    async with store.write() as tx:
        await tx.connection.execute(AuditNodeRow.metadata.tables["audit_node"].delete())
    (await receipt_of(store, 699)).verified(await public_key(store))


async def test_two_workers_record_each_head_once(store: Store, clock: SetClock):
    for shard in range(4):
        await append(store, shard=f"main-{shard}", count=3)
    workers = [HeadsLog(store, clock, NAME) for _ in range(3)]
    await asyncio.gather(*(worker.advance() for worker in workers))
    assert await count(store, AuditLogKeyRow) == 1
    covered = select(col(AuditRow.object)).where(
        col(AuditRow.tenant) == INSTALLATION,
        col(AuditRow.shard) == HEADS,
        col(AuditRow.action) == AuditAction.HEAD_RECORDED.value,
    )
    async with store.read() as tx:
        objects = list((await tx.connection.execute(covered)).scalars())
    assert sorted(objects) == [f"acme/main-{shard}" for shard in range(4)]


async def test_more_trees_than_fit_into_a_transaction(
    store: Store, log: HeadsLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heads, "_AT_ONCE", 3)
    for shard in range(8):
        await append(store, shard=f"main-{shard}")
    await log.advance()
    key = await public_key(store)
    for shard in range(8):
        (await receipt_of(store, 0, shard=f"main-{shard}")).verified(key)


async def test_a_tampered_leaf_gives_no_receipt(store: Store, log: HeadsLog):
    await append(store, count=3)
    await log.advance()
    async with store.write() as tx:
        forged = update(AuditRow).where(col(AuditRow.tenant) == ACME, col(AuditRow.seq) == 1)
        await tx.connection.execute(forged.values(leaf=bytes(32)))
    async with store.read() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN, "acme/main-1/0"):
            await proofs.receipt(tx, ACME, "main-1", 0)


async def test_a_tree_whose_end_was_rewritten_gets_no_head(store: Store, log: HeadsLog):
    await append(store)
    await append(store, shard="main-2")
    async with store.write() as tx:
        forged = update(AuditTreeRow).where(col(AuditTreeRow.shard) == "main-2")
        await tx.connection.execute(forged.values(size=2, peaks=bytes(32)))
    await log.advance()
    async with store.read() as tx:
        assert await proofs.receipt(tx, ACME, "main-1", 0) is not None
        assert await proofs.receipt(tx, ACME, "main-2", 0) is None


async def test_a_public_key_that_was_replaced_signs_nothing(store: Store, clock: SetClock, log: HeadsLog):
    await append(store)
    await log.advance()
    async with store.write() as tx:
        await tx.connection.execute(update(AuditLogKeyRow).values(public=bytes(32)))
    await append(store)
    with fails(ErrorCode.AUTHORITY_BROKEN, "alk_1"):
        await HeadsLog(store, clock, NAME).advance()


async def test_an_erased_record_keeps_its_receipt(store: Store, log: HeadsLog):
    await append(store)
    await log.advance()
    before = await receipt_of(store, 0)
    async with store.write() as tx:
        await tx.connection.execute(update(AuditRow).where(col(AuditRow.tenant) == ACME).values(body=None))
    after = await receipt_of(store, 0)
    assert after.verified(await public_key(store)).body is None
    assert after.leaf == before.leaf
    assert base64.b64encode(after.leaf)
    assert json.loads(before.body or "")["object"] == "con_1"
