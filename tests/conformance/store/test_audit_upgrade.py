"""Migration 0007: records of hash chains get bodies and leaves, and say and prove what they did before."""

import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import delete, text, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.audit import contains_checkpoint
from evergrant_server.audit.appending import main_shard
from evergrant_server.audit.chains import GENESIS_HASH, ChainEnd
from evergrant_server.audit.erasing import Place, erase_naming, erase_object, prune_bodies, shards_to_prune
from evergrant_server.audit.verification.walks import FlawKind
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.maintenance import AuditCheckpoint
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import open_database
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW

ACME, OTHER = Tenant("acme"), Tenant("other")
MANY, FEW = 2_100, 20  # records of leases: more than one page of the migration
_TEXTS = {"tenant", "shard", "seq", "action", "object", "by", "trace_id", "workflow_id", "run_id", "event_id"}
_ADD = (
    "INSERT INTO audit (tenant, shard, seq, at, action, object, by, trace_id, detail, workflow_id, run_id,"
    " event_id, previous_hash, hash, erased_mac, revision) VALUES (:tenant, :shard, :seq, :at, :action,"
    " :object, :by, :trace_id, :detail, :workflow_id, :run_id, :event_id, :previous_hash, :hash,"
    " :erased_mac, 1)"
)
_END = (
    "INSERT INTO audit_shard (tenant, shard, count, last_hash, mac, revision)"
    " VALUES (:tenant, :shard, :count, :last_hash, :mac, 1)"
)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def chained(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one chain by rule 1, with their hashes."""
    previous = GENESIS_HASH
    for seq, row in enumerate(rows, 1):
        row |= {"seq": seq, "previous_hash": previous}
        content = {name: row[name] for name in (*_TEXTS, "previous_hash")}
        content |= {"format": 1, "at": row["at"].isoformat(timespec="microseconds")}
        content["detail"] = json.loads(row["detail"])
        previous = row["hash"] = hashlib.sha256(canonical(content).encode()).hexdigest()
    return rows


def a_row(tenant: str, shard: str, number: int, **values: Any) -> dict[str, Any]:
    provenance = {"workflow_id": f"connection:{number}", "run_id": "run-1", "event_id": number}
    return {
        **{"tenant": tenant, "shard": shard, "at": NOW + timedelta(seconds=number, microseconds=number % 2)},
        **{"action": "grant.refreshed", "object": f"con_{number}", "by": "schedule", "trace_id": "a" * 32},
        "detail": canonical({"generation": number, "odd": '\u0000\ud7ff\U0001f512"', "share": 0.1}),
        **(provenance if number % 3 == 0 else dict.fromkeys(provenance)),
        "erased_mac": None,
        **values,
    }


def old_log(ring: KeyRing, leases: int = FEW) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records and the ends of several tenants' chains, some records erased as Evergrant did."""
    shards = {
        (ACME, "main"): [a_row(ACME, "main", number) for number in range(1, 8)],
        (ACME, "api-1-abcdef"): [
            a_row(ACME, "api-1-abcdef", number, action="lease.issued") for number in range(1, leases + 1)
        ],
        (ACME, "gateway"): [a_row(ACME, "gateway", 1, detail=canonical({"subject": "alice"}))],
        (OTHER, "main"): [a_row(OTHER, "main", 1)],
    }
    shards[INSTALLATION, "main"] = [
        a_row(INSTALLATION, "main", number, action="audit.shard_begun", object=f"{tenant}/{shard}")
        for number, (tenant, shard) in enumerate(shards, 1)
    ]
    rows, ends = list[dict[str, Any]](), list[dict[str, Any]]()
    for (tenant, shard), records in shards.items():
        rows += chained(records)
        end = ChainEnd(tenant, shard, len(records), records[-1]["hash"], None)
        ends.append(end._replace(mac=end.made(ring))._asdict())
    for row in rows[1], rows[20]:
        mac = ring.keyed_hash("audit erased", row["tenant"], row["shard"], row["seq"], row["hash"])
        row |= {"by": "erased", "trace_id": "", "detail": "{}", "erased_mac": mac}
        row |= dict.fromkeys(("workflow_id", "run_id", "event_id"))
    return rows, ends


# the judgement of rows that were read, which are the same from each database
ON_POSTGRESQL_IN_SOAK = pytest.mark.parametrize(
    "empty_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)], indirect=True
)
Filled = Callable[..., Awaitable[Store]]


@pytest_asyncio.fixture
async def upgraded(
    empty_url: str, ring: KeyRing, clock: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Filled]:
    """Fills a database of schema 0006 with old records, after a statement of its own, and upgrades it."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder)
    for file in (folder / "versions").glob("[0-9]*.py"):
        if file.name[:4] > "0006":
            file.unlink()
    opened: list[Store] = []

    async def upgrade(tampering: str = "SELECT 1", leases: int = FEW) -> Store:
        with monkeypatch.context() as patched:
            patched.setattr(schema, "MIGRATIONS", folder)
            schema.known_versions.cache_clear()
            await schema.upgrade(empty_url)
        schema.known_versions.cache_clear()
        rows, ends = old_log(ring, leases)
        database = open_database(empty_url)
        async with database.write() as connection:
            moments = [{**row, "at": row["at"].astimezone(UTC)} for row in rows]
            if empty_url.startswith("sqlite"):
                moments = [
                    {**row, "at": row["at"].replace(tzinfo=None).isoformat(" ", "microseconds")}
                    for row in rows
                ]
            await connection.execute(text(_ADD), moments)
            await connection.execute(text(_END), ends)
            await connection.execute(text(tampering))
        await database.close()
        assert await schema.upgrade(empty_url) == "0006"
        opened.append(await Store.open(empty_url, ring, clock))
        return opened[0]

    yield upgrade
    for store in opened:
        await store.close()


def an_entry(tenant: Tenant = ACME, object: str = "con_1") -> AuditEntry:
    context = RequestContext(by="app:billing", trace_id="b" * 32)
    action = AuditAction.GRANT_REFRESHED
    return AuditEntry(tenant=tenant, at=NOW, action=action, object=object, context=context)


async def test_old_records_say_what_they_said_and_are_verified_by_their_rule(upgraded: Filled, ring: KeyRing):
    store = await upgraded(leases=MANY)
    for tenant, count in ((ACME, MANY + 8), (OTHER, 1), (INSTALLATION, 4)):
        verdict = await audit.verify_log(store, tenant)
        assert (verdict.problem, verdict.records) == (None, count)
    rows, _ = old_log(ring, MANY)
    async with store.read() as tx:
        records = {(it.shard, it.seq): it for it in await audit.page(tx, ACME, limit=3_000)}
        assert await contains_checkpoint(tx, AuditCheckpoint(tenant=ACME, seq=3, hash=rows[2]["hash"]))
        assert not await contains_checkpoint(tx, AuditCheckpoint(tenant=ACME, seq=3, hash=rows[3]["hash"]))
        newest = await audit.newest_checkpoint(tx)
    assert newest == AuditCheckpoint(tenant=ACME, seq=7, hash=rows[6]["hash"])
    for row in (row for row in rows if row["tenant"] == ACME):
        record = records[row["shard"], row["seq"]]
        assert (record.at, record.action, record.object) == (row["at"], row["action"], row["object"])
        assert (record.hash, record.context.by) == (row["hash"], row["by"])
        assert (record.context.trace_id, record.detail) == (row["trace_id"], json.loads(row["detail"]))
        source = {name: row[name] for name in ("workflow_id", "run_id", "event_id")}
        assert record.provenance == (None if row["run_id"] is None else Provenance(**source))


async def test_the_first_tree_of_a_tenant_begins_with_how_its_chains_have_ended(
    upgraded: Filled, ring: KeyRing
):
    store = await upgraded()
    _, ends = old_log(ring)
    for shard in (None, "api-2-abcdef", None):
        async with store.write() as tx:
            await audit.append(tx, an_entry(), shard=shard)
    for tenant in (ACME, INSTALLATION):
        async with store.read() as tx:
            actions = (AuditAction.CHAIN_ENDED,)
            closed = await audit.newest_of_tenant(tx, tenant, actions, among=3_000)
        assert {it.shard for it in closed} == {main_shard(Role.API)}
        told = [(it.object, it.detail) for it in sorted(closed, key=lambda record: record.seq)]
        expected = [
            (end["shard"], {"count": end["count"], "last_hash": end["last_hash"]})
            for end in ends
            if end["tenant"] == tenant
        ]
        assert sorted(told, key=str) == sorted(expected, key=str)
        assert {it.seq for it in closed} == set(range(len(expected)))
        verdict = await audit.verify_log(store, tenant)
        assert verdict.problem is None
    assert await audit.broken_heads(store) == []


_ours = (col(AuditRow.tenant) == ACME) & (col(AuditRow.shard) == "main")
_our_end = (col(AuditShardRow.tenant) == ACME) & (col(AuditShardRow.shard) == "main")
TAMPERED: dict[str, tuple[list[Any], int, FlawKind]] = {
    "edited": (
        [update(AuditRow).where(_ours, col(AuditRow.seq) == 3).values(object="con_9")],
        3,
        FlawKind.EDITED,
    ),
    "body edited": (
        [update(AuditRow).where(_ours, col(AuditRow.seq) == 3).values(body="{}")],
        3,
        FlawKind.EDITED,
    ),
    "deleted": ([delete(AuditRow).where(_ours, col(AuditRow.seq) == 4)], 4, FlawKind.MISSING),
    "cut": ([delete(AuditRow).where(_ours, col(AuditRow.seq) > 5)], 6, FlawKind.CUT),
    "moved": (
        [
            delete(AuditRow).where(_ours, col(AuditRow.seq) == 4),
            update(AuditRow).where(_ours, col(AuditRow.seq) == 5).values(seq=4),
        ],
        4,
        FlawKind.EDITED,
    ),
    "forged end": ([update(AuditShardRow).where(_our_end).values(mac="f" * 64)], 7, FlawKind.FORGED_END),
    "gone with its end": (
        [delete(AuditRow).where(_ours), delete(AuditShardRow).where(_our_end)],
        0,
        FlawKind.GONE,
    ),
}


@ON_POSTGRESQL_IN_SOAK
@pytest.mark.parametrize("case", TAMPERED)
async def test_a_chain_that_was_tampered_with_is_named(upgraded: Filled, case: str):
    statements, seq, kind = TAMPERED[case]
    store = await upgraded()
    async with store.write() as tx:
        await audit.append(tx, an_entry())
    async with store.write() as tx:
        for statement in statements:
            await tx.connection.execute(statement)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.shard, verdict.seq, verdict.kind) == ("main", seq, kind), verdict.problem


async def test_a_chain_that_was_put_back_with_its_end_isnt_as_it_was_closed(upgraded: Filled, ring: KeyRing):
    store = await upgraded()
    async with store.write() as tx:
        await audit.append(tx, an_entry())
    rows, _ = old_log(ring)
    before = ChainEnd(ACME, "main", 5, rows[4]["hash"], None)
    async with store.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(_ours, col(AuditRow.seq) > 5))
        end = {"count": 5, "last_hash": before.last_hash, "mac": before.made(ring)}
        await tx.connection.execute(update(AuditShardRow).where(_our_end).values(end))
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.shard, verdict.seq, verdict.kind) == ("main", 7, FlawKind.FORGED_END), verdict.problem


@ON_POSTGRESQL_IN_SOAK
@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit SET object = 'con_9' WHERE tenant = 'acme' AND shard = 'main' AND seq = 3",
        "UPDATE audit SET detail = '[4]' WHERE tenant = 'acme' AND shard = 'main' AND seq = 3",
        "UPDATE audit SET detail = '{' WHERE tenant = 'acme' AND shard = 'main' AND seq = 3",
        "UPDATE audit SET hash = 'none' WHERE tenant = 'acme' AND shard = 'main' AND seq = 3",
        "UPDATE audit SET detail = '{}', by = 'erased' WHERE tenant = 'acme' AND shard = 'main' AND seq = 3",
        "UPDATE audit SET erased_mac = 'f' WHERE tenant = 'acme' AND shard = 'main' AND seq = 3",
    ],
)
async def test_what_was_edited_before_the_upgrade_is_named_after_it(upgraded: Filled, tampering: str):
    store = await upgraded(tampering)
    verdict = await audit.verify_log(store, ACME)
    assert (verdict.shard, verdict.seq, verdict.kind) == ("main", 3, FlawKind.EDITED)


async def test_old_records_can_still_be_erased_and_pruned(upgraded: Filled):
    store = await upgraded()
    async with store.write() as tx:
        assert (await erase_object(tx, ACME, "con_3", None))[0] == 2
    place: Place | None = Place()
    erased = 0
    while place is not None:
        async with store.write() as tx:
            count, place = await erase_naming(tx, ACME, "alice", place)
        erased += count
    assert erased == 1
    async with store.write() as tx:
        await audit.append(tx, an_entry())
        later = NOW + timedelta(days=1)
        shards = await shards_to_prune(tx, later, ("", ""))
        assert {shard for tenant, shard in shards if tenant == ACME} == {
            *("main", "api-1-abcdef", "gateway", main_shard(Role.API)),
        }
        for shard in ((ACME, "main"), (ACME, main_shard(Role.API))):
            assert await prune_bodies(tx, shard, later, []) > 0
            assert await prune_bodies(tx, shard, later, []) == 0
    verdict = await audit.verify_log(store, ACME)
    assert verdict.problem is None
    async with store.read() as tx:
        bodies = text(
            "SELECT count(*) FROM audit WHERE tenant = 'acme' AND shard = 'main' AND body IS NOT NULL"
        )
        assert (await tx.connection.execute(bodies)).scalar_one() == 0
