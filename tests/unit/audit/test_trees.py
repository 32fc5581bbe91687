"""Trees: gapless, committed with what they record, and every tampering named by its place."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.audit import walks
from evergrant_server.audit.bodies import Head, canonical_json, format_timestamp
from evergrant_server.audit.tree import Frontier, leaf_hash, tile_root
from evergrant_server.audit.trees import HEADS, main_shard
from evergrant_server.audit.walks import FlawKind
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Role
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditNodeRow, AuditRow, AuditTreeRow
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
        rows = (await tx.connection.execute(select(AuditRow).where(_ours))).mappings().all()
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


# --- tampering: each is named with its number and kind --------------------------------------------

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


async def _rehash_one(connection: Any) -> None:
    """Edit a record, and give it a leaf that covers the edit."""
    body = (await _row(connection, 2))["body"].replace("con_3", "con_8")
    values = {"object": "con_8", "body": body, "leaf": leaf_hash(body.encode())}
    await connection.execute(update(AuditRow).where(_ours, _seq == 2).values(values))


async def _rehash_all(connection: Any) -> None:
    """The same, with the tree that follows from it."""
    await _rehash_one(connection)
    rows = (await connection.execute(select(AuditRow.leaf).where(_ours).order_by(_seq))).scalars().all()
    peaks = Frontier().appended(rows).peaks
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
        rows = (
            (await tx.connection.execute(select(AuditRow.leaf).where(_ours).order_by(_seq))).scalars().all()
        )
        for number in range(2):
            node = tile_root(b"".join(rows[256 * number : 256 * (number + 1)]))
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
        leaves = (await tx.connection.execute(select(AuditRow.leaf).where(_ours).order_by(_seq))).scalars()
        size, peaks = Frontier().appended(leaves)
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


# --- one text per value: what a hash covers can't be spelled in two ways --------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, two: Any) -> bool:
    """Equal as JSON: True is not 1 and 1.0 is not 1."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)


@given(values)
def test_it_reads_back_and_is_spelled_the_same_again(value: Any):
    text = canonical_json(value)
    assert same(json.loads(text), value)
    assert canonical_json(json.loads(text)) == text
    assert text.isascii()


@given(values, values)
def test_different_values_have_different_texts(one: Any, two: Any):
    assert (canonical_json(one) == canonical_json(two)) == same(one, two)


@given(st.dictionaries(st.text(), st.integers(), max_size=6))
def test_the_order_of_names_does_not_matter(value: dict[str, int]):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"token": Secret("canary")}, TypeError),
        ({"token": [Secret("canary")]}, TypeError),
        ({1: "a"}, TypeError),
        ({"a": [{None: 1}]}, TypeError),
        (float("nan"), ValueError),
        ({"x": float("inf")}, ValueError),
        ({"at": datetime.now(UTC)}, TypeError),
    ],
)
def test_what_json_cannot_say_is_refused(value: Any, error: type[Exception]):
    with pytest.raises(error) as caught:
        canonical_json(value)
    assert "canary" not in str(caught.value)


def test_a_moment_is_the_same_text_in_every_zone():
    here = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert format_timestamp(here) == format_timestamp(here.astimezone(timezone(timedelta(hours=9))))
    assert format_timestamp(here) == "2026-03-01T12:00:00.000000+00:00"
