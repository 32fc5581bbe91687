"""Chains: gapless, committed with what they record, and every tampering named by its place."""

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
from evergrant_server.audit import verifier
from evergrant_server.audit.hash_chain import canonical_json, format_timestamp, record_hash
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

ACME = Tenant("acme")


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


async def put(store: Store, *entries: AuditEntry, shard: str = "main") -> None:
    for entry in entries:
        async with store.write() as tx:
            await audit.append(tx, entry, shard=shard)


async def test_records_follow_each_other_and_come_back_equal(store: Store):
    provenance = Provenance(workflow_id="connection:acme:con_1", run_id="run-1", event_id=17)
    entries = [an_entry(), an_entry("con_2", provenance=provenance), an_entry(detail={})]
    async with store.write() as tx:
        records = [await audit.append(tx, entry) for entry in entries]
    assert [it.seq for it in records] == [1, 2, 3]
    assert [it.previous_hash for it in records] == ["0" * 64, records[0].hash, records[1].hash]
    async with store.read() as tx:
        assert await audit.page(tx, ACME, limit=10) == records
        assert await audit.page(tx, ACME, object="con_2", limit=10) == [records[1]]
        assert await audit.page(tx, Tenant("other"), limit=10) == []
    assert records[1].provenance == provenance
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.records) == (True, 3)
    assert verdict.heads["main"] == (3, records[2].hash)


async def test_a_rolled_back_record_leaves_no_gap(store: Store):
    await put(store, an_entry())
    with fails(ErrorCode.STORE_CONFLICT):
        async with store.write() as tx:
            await audit.append(tx, an_entry())
            raise Failure(ErrorCode.STORE_CONFLICT)
    await put(store, an_entry())
    async with store.read() as tx:
        assert [it.seq for it in await audit.page(tx, ACME, limit=5)] == [1, 2]
    assert (await audit.verify_log(store, ACME)).ok


async def test_concurrent_writers_share_a_chain_without_gaps(store: Store):
    await asyncio.gather(*(put(store, an_entry(f"con_{n}")) for n in range(12)))
    async with store.read() as tx:
        seqs = sorted(it.seq for it in await audit.page(tx, ACME, limit=50))
    assert seqs == list(range(1, 13))
    assert (await audit.verify_log(store, ACME)).ok


async def test_shards_and_tenants_have_chains_of_their_own(store: Store):
    await put(store, an_entry(), an_entry(tenant="other"))
    await put(store, an_entry(), an_entry(), shard="lease-1")
    verdict = await audit.verify_log(store, ACME)
    assert {shard: head.count for shard, head in verdict.heads.items()} == {"main": 1, "lease-1": 2}
    assert (await audit.verify_log(store, Tenant("nobody"))).ok


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


Tampering = Callable[[Any], Awaitable[object]]
_seq = col(AuditRow.seq)
_ours = col(AuditShardRow.tenant) == ACME


def _edit(seq: int, **values: Any) -> Tampering:
    return lambda c: c.execute(update(AuditRow).where(_seq == seq).values(values))


def _remove(*seqs: int) -> Tampering:
    return lambda c: c.execute(delete(AuditRow).where(_seq.in_(seqs)))


async def _swap(connection: Any) -> None:
    for old, new in ((2, 99), (3, 2), (99, 3)):
        await connection.execute(update(AuditRow).where(_seq == old).values(seq=new))


async def _rehash_one(connection: Any) -> None:
    """Edit a record and give it a hash that covers the edit: the next one no longer follows."""
    row = dict((await connection.execute(select(AuditRow).where(_seq == 3))).mappings().one())
    row["object"] = "con_forged"
    values = {"object": row["object"], "hash": record_hash(row)}
    await connection.execute(update(AuditRow).where(_seq == 3).values(values))


async def _add_beyond(connection: Any) -> None:
    row = dict((await connection.execute(select(AuditRow).where(_seq == 5))).mappings().one())
    row |= {"seq": 6, "previous_hash": row["hash"]}
    await connection.execute(insert(AuditRow).values(row | {"hash": record_hash(row)}))


async def _renumber_after_removal(connection: Any) -> None:
    await connection.execute(delete(AuditRow).where(_seq == 2))
    for seq in (3, 4, 5):
        await connection.execute(update(AuditRow).where(_seq == seq).values(seq=seq - 1))
    await connection.execute(update(AuditShardRow).values(count=4))


CASES: dict[str, tuple[Tampering, int, str]] = {
    "deleted": (_remove(3), 3, "missing"),
    "first deleted": (_remove(1), 1, "missing"),
    "all deleted": (_remove(1, 2, 3, 4, 5), 1, "tail is cut"),
    "tail cut": (_remove(4, 5), 4, "tail is cut"),
    "object edited": (_edit(2, object="con_9"), 2, "edited"),
    "moment edited": (_edit(2, at=NOW + timedelta(microseconds=1)), 2, "edited"),
    "who edited": (_edit(4, by="operator"), 4, "edited"),
    "action edited": (_edit(4, action="nonsense"), 4, "edited"),
    "detail edited": (_edit(5, detail='{"generation":3}'), 5, "edited"),
    "detail broken": (_edit(5, detail="{"), 5, "edited"),
    "run edited": (_edit(1, run_id="run-9"), 1, "edited"),
    "hash edited": (_edit(1, hash="0" * 64), 1, "edited"),
    "reordered": (_swap, 2, "edited or moved"),
    "edited and hashed again": (_rehash_one, 4, "doesn't follow"),
    "added by hand": (_add_beyond, 6, "beyond the recorded end"),
    "removed and renumbered": (_renumber_after_removal, 2, "edited or moved"),
    "last hash edited": (
        lambda c: c.execute(update(AuditShardRow).values(last_hash="f" * 64)),
        5,
        "isn't the one",
    ),
    "shard row deleted": (lambda c: c.execute(delete(AuditShardRow)), 5, "beyond the recorded end"),
}


@pytest.mark.parametrize("case", CASES)
async def test_the_verifier_names_the_place(store: Store, case: str):
    tampering, seq, why = CASES[case]
    await put(store, *(an_entry(f"con_{n}") for n in range(1, 6)))
    assert (await audit.verify_log(store, ACME)).ok
    async with store.write() as tx:
        await tampering(tx.connection)
    verdict = await audit.verify_log(store, ACME)
    assert not verdict.ok
    assert (verdict.shard, verdict.seq) == ("main", seq)
    assert verdict.problem is not None
    assert why in verdict.problem


async def test_a_chain_longer_than_one_stride_is_walked_to_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verifier, "_STRIDE", 2)
    await put(store, *(an_entry(f"con_{n}") for n in range(5)))
    assert (await audit.verify_log(store, ACME)).records == 5
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_seq == 5))
    assert (await audit.verify_log(store, ACME)).seq == 5


async def cut_to_four(store: Store, **head: Any) -> None:
    """Remove the fifth record, and have the recorded end say so too."""
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_seq == 5))
        fourth = (await tx.connection.execute(select(AuditRow).where(_seq == 4))).mappings().one()
        end = {"count": 4, "last_hash": fourth["hash"], **head}
        await tx.connection.execute(update(AuditShardRow).where(_ours).values(end))


async def test_a_tail_cut_with_its_recorded_end_is_seen_and_stays_visible(
    store: Store, caplog: pytest.LogCaptureFixture
):
    """The end lacks our authenticator, and no later record gives it one."""
    await put(store, *(an_entry(f"con_{n}") for n in range(5)))
    await cut_to_four(store)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.ok, verdict.shard, verdict.seq) == (False, "main", 4)
    with caplog.at_level(logging.ERROR):
        await put(store, an_entry("con_9"), an_entry("con_9"))
    assert [it.message.partition(":")[0] for it in caplog.records] == ["authority broken"] * 2
    assert (await audit.verify_log(store, ACME)).seq == 6
    assert [it.row for it in await audit.broken_heads(store)] == ["acme/main"]
    assert await audit.accept_heads(store, {"acme/main"}) == ["acme/main"]
    assert (await audit.verify_log(store, ACME)).ok


async def test_an_earlier_state_put_back_is_seen_only_with_a_head_kept_elsewhere(store: Store):
    """What the docstring of `verify_log` admits."""
    await put(store, *(an_entry(f"con_{n}") for n in range(4)))
    async with store.read() as tx:
        mac = (await tx.connection.execute(select(AuditShardRow).where(_ours))).mappings().one()["mac"]
    await put(store, an_entry("con_4"))
    kept_elsewhere = (await audit.verify_log(store, ACME)).heads["main"]
    await cut_to_four(store, mac=mac)
    verdict = await audit.verify_log(store, ACME)
    assert verdict.ok
    assert verdict.heads["main"].count < kept_elsewhere.count


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
