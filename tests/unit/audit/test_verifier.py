"""Every tampering is named with its shard, number and kind."""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.audit.appending import HEADS
from evergrant_server.audit.bodies import Head
from evergrant_server.audit.merkle_tree import Frontier, leaf_hash, tile_root
from evergrant_server.audit.verification import walks
from evergrant_server.audit.verification.walks import FlawKind
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditNodeRow, AuditRow, AuditTreeRow
from tests.fakes.databases import NOW
from tests.unit.audit.test_appending import ACME, MAIN, an_entry, put

Tampering = Callable[[Any], Awaitable[object]]
_seq, _ours = col(AuditRow.seq), col(AuditRow.tenant) == ACME
_our_tree = col(AuditTreeRow.tenant) == ACME
_births = (col(AuditRow.tenant) == INSTALLATION) & (col(AuditRow.shard) == HEADS)


def _edit(seq: int, /, **values: Any) -> Tampering:
    return lambda c: c.execute(update(AuditRow).where(_ours, _seq == seq).values(values))


def _remove(*seqs: int) -> Tampering:
    return lambda c: c.execute(delete(AuditRow).where(_ours, _seq.in_(seqs)))


async def _swap(connection: Any) -> None:
    for old, new in ((1, 99), (2, 1), (99, 2)):
        await connection.execute(update(AuditRow).where(_ours, _seq == old).values(seq=new))


async def _row(connection: Any, seq: int) -> dict[str, Any]:
    return dict((await connection.execute(select(AuditRow).where(_ours, _seq == seq))).mappings().one())


async def _leaves(connection: Any) -> list[bytes]:
    query = select(col(AuditRow.leaf)).where(_ours).order_by(_seq)
    return [*(await connection.execute(query)).scalars()]


async def _rehash_one(connection: Any) -> None:
    """Edit a record, and give it a leaf that covers the edit."""
    body = (await _row(connection, 2))["body"].replace("con_3", "con_8")
    values = {"object": "con_8", "body": body, "leaf": leaf_hash(body.encode())}
    await connection.execute(update(AuditRow).where(_ours, _seq == 2).values(values))


async def _rehash_all(connection: Any) -> None:
    """The same, with the tree that follows from it."""
    await _rehash_one(connection)
    peaks = Frontier().appended(await _leaves(connection)).peaks
    await connection.execute(update(AuditTreeRow).where(_our_tree).values(peaks=peaks))


async def _add_beyond(connection: Any) -> None:
    await connection.execute(insert(AuditRow).values(await _row(connection, 4) | {"seq": 5}))


async def _renumber_after_removal(connection: Any) -> None:
    await connection.execute(delete(AuditRow).where(_ours, _seq == 1))
    for seq in (2, 3, 4):
        await connection.execute(update(AuditRow).where(_ours, _seq == seq).values(seq=seq - 1))


async def _renumber_with_the_end(connection: Any) -> None:
    await _renumber_after_removal(connection)
    await connection.execute(update(AuditTreeRow).where(_our_tree).values(size=4))


async def _forge_head(connection: Any) -> None:
    """Have the heads log say that the shard began with another root."""
    head = Head(ACME, MAIN, 0, bytes(32), NOW)
    await connection.execute(update(AuditRow).where(_births, _seq == 0).values(body=head.body))


async def _hide_birth(connection: Any) -> None:
    await connection.execute(update(AuditRow).where(_births, _seq == 0).values(action="audit.head_recorded"))


async def _forge_node(connection: Any) -> None:
    row = {"tenant": ACME, "shard": MAIN, "level": 1, "number": 0, "hash": bytes(32), "revision": 1}
    await connection.execute(insert(AuditNodeRow).values(row))


CASES: dict[str, tuple[Tampering, int, FlawKind]] = {
    "deleted": (_remove(2), 2, FlawKind.MISSING),
    "first deleted": (_remove(0), 0, FlawKind.MISSING),
    "all deleted": (_remove(0, 1, 2, 3, 4), 0, FlawKind.CUT),
    "tail cut": (_remove(3, 4), 3, FlawKind.CUT),
    "object edited": (_edit(1, object="con_9"), 1, FlawKind.EDITED),
    "moment edited": (_edit(1, at=NOW + timedelta(microseconds=1)), 1, FlawKind.EDITED),
    "action edited": (_edit(3, action="nonsense"), 3, FlawKind.EDITED),
    "body edited": (_edit(4, body='{"v":2}'), 4, FlawKind.EDITED),
    "body removed": (_edit(4, body=None), 4, FlawKind.EDITED),
    "body removed with a made up mac": (_edit(4, body=None, erased_mac="f" * 64), 4, FlawKind.EDITED),
    "leaf edited": (_edit(0, leaf=bytes(32)), 0, FlawKind.EDITED),
    "numbered below the first": (_edit(0, seq=-1), 0, FlawKind.MISSING),
    "swapped": (_swap, 0, FlawKind.REPLACED),
    "edited and hashed again": (_rehash_one, 0, FlawKind.REPLACED),
    "rewritten with its end": (_rehash_all, 4, FlawKind.FORGED_END),
    "added by hand": (_add_beyond, 5, FlawKind.ADDED),
    "removed and renumbered": (_renumber_after_removal, 4, FlawKind.CUT),
    "removed and renumbered with the end": (_renumber_with_the_end, 3, FlawKind.FORGED_END),
    "peaks edited": (
        lambda c: c.execute(update(AuditTreeRow).where(_our_tree).values(peaks=bytes(64))),
        4,
        FlawKind.FORGED_END,
    ),
    "end deleted": (lambda c: c.execute(delete(AuditTreeRow).where(_our_tree)), 4, FlawKind.ADDED),
    "a tile's hash of before it is full": (_forge_node, 0, FlawKind.FORGED_NODE),
}


@pytest.mark.parametrize("case", CASES)
async def test_the_verifier_names_the_place(store: Store, case: str):
    tampering, seq, kind = CASES[case]
    await put(store, *(an_entry(f"con_{n}") for n in range(1, 6)))
    assert (await audit.verify_log(store, ACME)).ok
    async with store.write() as tx:
        await tampering(tx.connection)
    verdict = await audit.verify_log(store, ACME)
    assert not verdict.ok
    assert (verdict.shard, verdict.seq, verdict.kind) == (MAIN, seq, kind), verdict.problem


@pytest.mark.parametrize(
    ("tampering", "kind"), [(_forge_head, FlawKind.EDITED), (_hide_birth, FlawKind.EDITED)]
)
async def test_the_heads_log_is_verified_first(store: Store, tampering: Tampering, kind: FlawKind):
    await put(store, an_entry())
    async with store.write() as tx:
        await tampering(tx.connection)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.shard, verdict.seq, verdict.kind) == ("-/heads", 0, kind), verdict.problem


async def with_heads(store: Store, *sizes: int) -> None:
    """Record as many records, one by one, and a head at these sizes, as a worker does."""
    for size in range(max(sizes) + 1):
        if size in sizes:
            async with store.write() as tx:
                await audit.lock_heads(tx)
                tree = (await tx.connection.execute(select(AuditTreeRow).where(_our_tree))).mappings().one()
                root = Frontier(tree["size"], tree["peaks"]).root
                await audit.append_heads(tx, [Head(ACME, MAIN, tree["size"], root, NOW)])
        await put(store, an_entry(f"con_{size + 1}"))


async def test_heads_narrow_down_what_was_replaced(store: Store):
    await with_heads(store, 3, 6)
    assert (await audit.verify_log(store, ACME)).ok
    async with store.write() as tx:
        for old, new in ((4, 99), (5, 4), (99, 5)):
            await tx.connection.execute(update(AuditRow).where(_ours, _seq == old).values(seq=new))
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.seq, verdict.kind) == (3, FlawKind.REPLACED)
    assert verdict.problem is not None
    assert "3 to 5" in verdict.problem


async def test_a_tree_that_was_put_back_with_its_end_is_seen_by_its_head(store: Store):
    """Its end is authentic: Evergrant has written it once."""
    await put(store, *(an_entry(f"con_{n}") for n in range(3)))
    async with store.read() as tx:
        before = dict((await tx.connection.execute(select(AuditTreeRow).where(_our_tree))).mappings().one())
    await with_heads(store, 2)
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_ours, _seq > 2))
        await tx.connection.execute(update(AuditTreeRow).where(_our_tree).values(before))
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.seq, verdict.kind) == (False, 3, FlawKind.CUT)


async def test_a_head_of_another_root_in_a_log_that_is_whole_is_named(store: Store):
    """As a worker's stolen key could write it."""
    await put(store, *(an_entry(f"con_{n}") for n in range(3)))
    for head in (Head(ACME, MAIN, 2, bytes(32), NOW), Head(ACME, MAIN, 9, bytes(32), NOW)):
        async with store.write() as tx:
            await audit.append_heads(tx, [head])
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.shard, verdict.seq, verdict.kind) == (MAIN, 0, FlawKind.REPLACED)


async def test_a_long_tree_is_walked_page_by_page_with_its_tiles(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(walks, "_STRIDE", 100)
    async with store.write() as tx:
        await audit.append_all(tx, [an_entry(f"con_{n}") for n in range(600)])
        leaves = await _leaves(tx.connection)
        for number in range(2):
            node = tile_root(b"".join(leaves[256 * number : 256 * (number + 1)]))
            row = {"tenant": ACME, "shard": MAIN, "level": 1, "number": number, "hash": node, "revision": 1}
            await tx.connection.execute(insert(AuditNodeRow).values(row))
    assert (await audit.verify_log(store, ACME)).records == 600
    async with store.write() as tx:
        forged = update(AuditNodeRow).where(col(AuditNodeRow.number) == 1).values(hash=bytes(32))
        await tx.connection.execute(forged)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.seq, verdict.kind) == (256, FlawKind.FORGED_NODE)
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_ours, _seq == 599))
    assert (await audit.verify_log(store, ACME)).kind == FlawKind.FORGED_NODE


async def cut_to_four(store: Store, **end: Any) -> None:
    """Remove the fifth record, and have the recorded end say so too."""
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_ours, _seq == 4))
        size, peaks = Frontier().appended(await _leaves(tx.connection))
        values = {"size": size, "peaks": peaks, **end}
        await tx.connection.execute(update(AuditTreeRow).where(_our_tree).values(values))


async def test_a_tail_cut_with_its_recorded_end_is_seen_and_stays_visible(
    store: Store, caplog: pytest.LogCaptureFixture
):
    """The end lacks our authenticator, and no later record gives it one."""
    await put(store, *(an_entry(f"con_{n}") for n in range(5)))
    await cut_to_four(store)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.shard, verdict.seq) == (False, MAIN, 3)
    with caplog.at_level(logging.ERROR):
        await put(store, an_entry("con_9"), an_entry("con_9"))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["authority broken"] * 2
    assert (await audit.verify_log(store, ACME)).seq == 5
    assert [row.row for row in await audit.broken_heads(store)] == [f"acme/{MAIN}"]
    assert await audit.accept_heads(store, {f"acme/{MAIN}"}) == [f"acme/{MAIN}"]
    assert (await audit.verify_log(store, ACME)).ok


async def test_an_earlier_state_put_back_without_heads_is_seen_only_by_what_is_kept_elsewhere(store: Store):
    """What the docstring of `verify_log` admits."""
    await put(store, *(an_entry(f"con_{n}") for n in range(4)))
    async with store.read() as tx:
        mac = (await tx.connection.execute(select(AuditTreeRow).where(_our_tree))).mappings().one()["mac"]
    await put(store, an_entry("con_4"))
    kept_elsewhere = (await audit.verify_log(store, ACME)).heads[MAIN]
    await cut_to_four(store, mac=mac)
    verdict = await audit.verify_log(store, ACME)
    assert verdict.ok
    assert verdict.heads[MAIN].size < kept_elsewhere.size
