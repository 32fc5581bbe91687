"""A verification goes on in another process, and the next one begins in the heads log where it has ended."""

import json
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.audit.appending import HEADS, TreeEnd
from evergrant_server.audit.bodies import Head
from evergrant_server.audit.verification import walks
from evergrant_server.audit.verification.verifier import AuditVerification
from evergrant_server.audit.verification.walks import FlawKind
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditRow, AuditTreeRow
from tests.fakes.databases import NOW
from tests.unit.audit.test_appending import ACME, MAIN, an_entry, put

OTHER = Tenant("other")
API_1 = "api-1"
_ours = col(AuditTreeRow.tenant) == ACME
_records = (col(AuditRow.tenant) == ACME) & (col(AuditRow.shard) == API_1)
_heads = (col(AuditRow.tenant) == INSTALLATION) & (col(AuditRow.shard) == HEADS)


async def with_head(store: Store, tenant: Tenant, shard: str) -> None:
    """Record the head of a tree as it is now, as a worker does."""
    async with store.write() as tx:
        await audit.lock_heads(tx)
        mine = (col(AuditTreeRow.tenant) == tenant) & (col(AuditTreeRow.shard) == shard)
        row = (await tx.connection.execute(select(AuditTreeRow).where(mine))).mappings().one()
        end = TreeEnd(**{name: row[name] for name in TreeEnd._fields})
        await audit.append_heads(tx, [Head(tenant, shard, end.size, end.frontier.root, NOW)])


async def a_log(store: Store) -> None:
    for number in range(30):
        await put(store, an_entry(f"con_{number}"))
        await put(store, an_entry(f"con_{number}"), shard=API_1)
        await put(store, an_entry(tenant=OTHER))
        if number % 7 == 6:
            await with_head(store, ACME, MAIN)
            await with_head(store, ACME, API_1)
            await with_head(store, OTHER, MAIN)


async def verified(store: Store) -> audit.LogVerification:
    """A verification from the last one on, to its end."""
    verification = audit.LogVerification(store, ACME, whole=False)
    while not verification.done:
        await verification.advance()
    return verification


async def marked(store: Store, shard: str | None = None) -> None:
    """Record what a good verification leaves."""
    verification = await verified(store)
    assert verification.flaw is None
    async with store.write() as tx:
        detail = {"ok": True, **await verification.mark(tx)}
        entry = an_entry(ACME, action=AuditAction.LOG_VERIFIED, detail=detail)
        await audit.append(tx, entry, shard=shard)


async def resumed_each_time(store: Store) -> tuple[AuditVerification, int]:
    """Verify a page in each process; the verdict, and how many processes there were."""
    place, heads, processes = "", dict[str, Any](), 0
    while True:
        verification = audit.LogVerification(store, ACME, whole=True, place=place)
        heads |= dict(await verification.advance())
        processes += 1
        if verification.done:
            return verification.verdict(heads), processes
        place = verification.place


def content_of(verification: audit.LogVerification) -> dict[str, Any]:
    return json.loads(verification.place.partition(" ")[2])


@pytest.mark.parametrize("tampered", [False, True])
async def test_each_page_may_be_another_processs(
    store: Store, monkeypatch: pytest.MonkeyPatch, tampered: bool
):
    monkeypatch.setattr(walks, "_STRIDE", 4)
    await a_log(store)
    if tampered:
        async with store.write() as tx:
            for old, new in ((17, 99), (18, 17), (99, 18)):
                moved = update(AuditRow).where(_records, col(AuditRow.seq) == old).values(seq=new)
                await tx.connection.execute(moved)
    verdict, processes = await resumed_each_time(store)
    assert verdict == await audit.verify_log(store, ACME)
    assert (verdict.ok, processes > 10) == (not tampered, True)
    if tampered:
        assert (verdict.shard, verdict.seq, verdict.kind) == (API_1, 14, FlawKind.REPLACED)


async def test_a_shard_that_begins_meanwhile_is_walked_from_its_beginning(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(walks, "_STRIDE", 4)
    await a_log(store)
    verification = audit.LogVerification(store, ACME, whole=True)
    while (place := content_of(verification))["of"] != ACME or place["in"] is None:
        await verification.advance()
    await verification.advance()
    await put(store, an_entry(), shard="api-0")
    verification = audit.LogVerification(store, ACME, whole=True, place=verification.place)
    while not verification.done:
        await verification.advance()
    assert verification.flaw is None
    assert verification.records >= 61


@pytest.mark.parametrize("which", ["edited", "another verification's"])
async def test_a_place_that_isnt_its_own_skips_nothing(store: Store, which: str):
    await a_log(store)
    verification = audit.LogVerification(store, ACME, whole=True, id="qst_1")
    while not verification.done:
        place = verification.place
        await verification.advance()
    whole, id = verification.read, "qst_1"
    if which == "edited":
        place = place.replace('"records":', '"records":1')
    else:
        id = "qst_2"
    again = audit.LogVerification(store, ACME, whole=True, id=id, place=place)
    while not again.done:
        await again.advance()
    assert (again.flaw, again.read, again.records) == (None, whole, 60)
    own = audit.LogVerification(store, ACME, whole=True, id="qst_1", place=verification.place)
    assert own.records == 60


async def test_the_next_verification_reads_the_heads_log_from_there_on(store: Store):
    await a_log(store)
    whole = (await verified(store)).read
    await marked(store)
    await with_head(store, ACME, MAIN)
    again = await verified(store)
    heads = 3 + 3 * 4  # births, and heads
    assert (again.flaw, again.read) == (None, whole - heads + 1 + 1)  # the mark's record, and the new head
    async with store.read() as tx:
        assert await audit.records_to_verify(tx, ACME) == again.read


async def put_back(store: Store, size: int) -> None:
    """Put a shard back with its authentic end of before, and say so in its newest head."""
    async with store.write() as tx:
        end = TreeEnd.first(store.ring, ACME, API_1)
        leaves = (
            select(col(AuditRow.leaf)).where(_records, col(AuditRow.seq) < size).order_by(col(AuditRow.seq))
        )
        end = end.appended(store.ring, [*(await tx.connection.execute(leaves)).scalars()])
        await tx.connection.execute(delete(AuditRow).where(_records, col(AuditRow.seq) >= size))
        now = {"size": size, "peaks": end.peaks, "mac": end.mac}
        ours = _ours & (col(AuditTreeRow.shard) == API_1)
        await tx.connection.execute(update(AuditTreeRow).where(ours).values(now))
        of_shard = _heads & (col(AuditRow.object) == f"acme/{API_1}")
        for row in (await tx.connection.execute(select(AuditRow).where(of_shard))).mappings().all():
            head = Head.parse(row["body"])
            if head.size > size:
                body = head._replace(size=size, root=end.frontier.root).body
                mine = of_shard & (col(AuditRow.seq) == row["seq"])
                await tx.connection.execute(update(AuditRow).where(mine).values(body=body))


async def test_a_shard_that_was_put_back_with_its_heads_is_seen_behind_a_mark(store: Store):
    """The heads log is walked as a whole then, which names the head that was edited."""
    await a_log(store)
    await marked(store)
    await put_back(store, 20)
    verification = await verified(store)
    assert verification.flaw is not None
    shard, flaw = verification.flaw
    assert (shard, flaw.kind) == ("-/heads", FlawKind.EDITED)


async def test_a_shard_that_is_gone_with_its_heads_is_missed_behind_a_mark(store: Store):
    await a_log(store)
    await marked(store)
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_records))
        await tx.connection.execute(delete(AuditTreeRow).where(_ours, col(AuditTreeRow.shard) == API_1))
        await tx.connection.execute(delete(AuditRow).where(_heads, col(AuditRow.object) == f"acme/{API_1}"))
    verification = await verified(store)
    assert verification.flaw is not None
    assert (verification.flaw[0], verification.flaw[1].kind) == ("-/heads", FlawKind.MISSING)


async def test_an_edited_head_that_no_walk_reads_any_more_is_named_where_it_is_compared(store: Store):
    await a_log(store)
    await marked(store)
    async with store.write() as tx:
        of_shard = _heads & (col(AuditRow.object) == f"acme/{API_1}") & (col(AuditRow.seq) > 4)
        first = select(col(AuditRow.seq)).where(of_shard).order_by(col(AuditRow.seq)).limit(1)
        number = (await tx.connection.execute(first)).scalar_one()
        edited = update(AuditRow).where(_heads, col(AuditRow.seq) == number).values(body="nonsense")
        await tx.connection.execute(edited)
    verification = await verified(store)
    assert verification.flaw is not None
    assert (verification.flaw[0], verification.flaw[1].kind) == (API_1, FlawKind.FORGED_HEAD)


async def test_a_heads_log_that_is_shorter_than_it_was_is_cut(store: Store):
    await a_log(store)
    async with store.read() as tx:
        query = select(AuditTreeRow).where(col(AuditTreeRow.tenant) == INSTALLATION)
        ends = [dict(row) for row in (await tx.connection.execute(query)).mappings()]
    (before,) = [end for end in ends if end["shard"] == HEADS]
    await with_head(store, OTHER, MAIN)
    await marked(store)
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_heads, col(AuditRow.seq) >= before["size"]))
        log = (col(AuditTreeRow.tenant) == INSTALLATION) & (col(AuditTreeRow.shard) == HEADS)
        await tx.connection.execute(update(AuditTreeRow).where(log).values(before))
    verification = await verified(store)
    assert verification.flaw is not None
    assert (verification.flaw[0], verification.flaw[1].kind) == ("-/heads", FlawKind.CUT)


@pytest.mark.parametrize("body", ["", "{", '{"detail":{"ok":true,"heads":"x","peaks":"","told":""}}'])
async def test_a_mark_that_cant_be_read_is_none(store: Store, body: str):
    await a_log(store)
    whole = (await verified(store)).read
    await marked(store)
    async with store.write() as tx:
        mark = update(AuditRow).where(col(AuditRow.action) == AuditAction.LOG_VERIFIED.value)
        await tx.connection.execute(mark.values(body=body))
    verification = await verified(store)
    assert verification.flaw is not None, "its record was edited"
    assert verification.flaw[1].kind == FlawKind.EDITED
    assert verification.read >= whole - 31


async def test_a_gateways_mark_isnt_believed(store: Store):
    await a_log(store)
    whole = (await verified(store)).read
    await marked(store, shard="gateway-0")
    assert (await verified(store)).read >= whole
