"""`python -m bench.audit [--records N] [--postgresql]`: what records cost in a tree, and in the chain before.

Appending is measured in memory, a batch of 64 leases at a time as the ledger takes them: what is done before
the lock of the tree, and under it. Then a log of N leases is written and verified, with the memory it takes.
"""

import argparse
import asyncio
import hashlib
import json
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import insert, update

from bench.ledger import lease_claim
from bench.processes import postgresql
from evergrant_server import audit
from evergrant_server.audit.bodies import body_of, canonical_json, format_timestamp
from evergrant_server.audit.lease_record import LeaseClaim, LeaseFacts, LeaseRecord
from evergrant_server.audit.tree import leaf_hash
from evergrant_server.audit.trees import TreeEnd, begin_tree
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import AppId, ConnectionId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import AuditRow, AuditTreeRow
from evergrant_server.store.database import schema
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import columns_equal

TENANT, SHARD = Tenant("bench"), "bench-1"
_BATCH = 64  # leases of a commit
_APPENDED = 50_000  # of each side
_PAGE = 4_096  # records of a transaction that fills the log


class ChainedLease:
    """A lease's record in the hash chain of before, from ready pieces: whole under the lock alone."""

    def __init__(self, claim: LeaseClaim) -> None:
        named = {"app": claim.app_id, "generation": claim.generation, "scopes": list(claim.scopes)}
        self._until_at = '{"action":"lease.issued","at":"'
        self._until_place = (
            f'","by":{quoted(claim.context.by)},"detail":{canonical_json(named)},"event_id":null,"format":1,'
            f'"object":{quoted(claim.connection_id)},'
        )
        self._until_trace = f'"shard":{quoted(SHARD)},"tenant":{quoted(claim.tenant)},"trace_id":'

    def record(self, at: datetime, trace_id: str) -> tuple[str, str]:
        head = f"{self._until_at}{format_timestamp(at)}{self._until_place}"
        return head, f'{self._until_trace}{quoted(trace_id)},"workflow_id":null}}'

    @staticmethod
    def hash_behind(record: tuple[str, str], previous: str, seq: int) -> str:
        place = f'"previous_hash":"{previous}","run_id":null,"seq":{seq},'
        return hashlib.sha256(f"{record[0]}{place}{record[1]}".encode()).hexdigest()


def _append_costs(ring: KeyRing, claims: Sequence[LeaseClaim]) -> dict[str, tuple[float, float]]:
    """Microseconds for each record, before the lock and under it: of leases in the chain and in the tree, and
    of other records in both."""
    traces = [new_id("out")[-8:] * 4 for _ in range(_BATCH)]
    now, spent, count = SystemClock().now(), dict[str, tuple[float, float]](), 0
    chained, facts = [ChainedLease(claim) for claim in claims], [LeaseFacts(claim) for claim in claims]
    entries = [_entry(claim, now) for claim in claims[:1] * _BATCH]
    previous, end = "0" * 64, TreeEnd.first(ring, TENANT, SHARD)

    def note(side: str, began: float, locked: float) -> None:
        before, under = spent.get(side, (0.0, 0.0))
        spent[side] = before + locked - began, under + perf_counter() - locked

    for _ in range(_APPENDED // _BATCH):  # in turns, so that the machine's load is that of all
        began = perf_counter()
        pieces = [chained[n % len(claims)].record(now, traces[n]) for n in range(_BATCH)]
        locked = perf_counter()
        for piece in pieces:
            count += 1
            previous = ChainedLease.hash_behind(piece, previous, count)
        ring.keyed_hash("audit head", TENANT, SHARD, count, previous)
        note("leases, chain", began, locked)

        began = perf_counter()
        records = [facts[n % len(claims)].record(now, traces[n]) for n in range(_BATCH)]
        expected = end.appended(
            ring, [record.leaf for record in records]
        )  # both writers do so before the lock
        locked = perf_counter()
        end = expected if expected.size == end.size + len(records) else end
        note("leases, tree", began, locked)

        began = locked = perf_counter()
        for entry in entries:
            count += 1
            previous = chained_hash(entry, previous, count)
        ring.keyed_hash("audit head", TENANT, SHARD, count, previous)
        note("other records, chain", began, locked)

        began = perf_counter()
        leaves = [leaf_hash(body_of(entry).encode()) for entry in entries]
        locked = perf_counter()
        end = end.appended(ring, leaves)
        note("other records, tree", began, locked)
    records_of_each = _APPENDED // _BATCH * _BATCH
    return {
        side: (before * 1e6 / records_of_each, under * 1e6 / records_of_each)
        for side, (before, under) in spent.items()
    }


def chained_hash(entry: AuditEntry, previous: str, seq: int) -> str:
    """The hash of any record in the chain of before, made of its row: JSON twice, under the lock."""
    row: dict[str, Any] = {
        **{"tenant": entry.tenant, "shard": SHARD, "seq": seq, "action": entry.action.value},
        **{"object": entry.object, "by": entry.context.by, "trace_id": entry.context.trace_id},
        **{"workflow_id": None, "run_id": None, "event_id": None, "previous_hash": previous},
    }
    detail = canonical_json(entry.detail)
    content = {**row, "format": 1, "at": format_timestamp(entry.at), "detail": json.loads(detail)}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _entry(claim: LeaseClaim, at: datetime) -> AuditEntry:
    return AuditEntry(
        tenant=claim.tenant,
        at=at,
        action=AuditAction.GRANT_REFRESHED,
        object=claim.connection_id,
        context=claim.context,
        detail={"generation": 7, "scopes": list(claim.scopes), "expires_at": at.isoformat()},
    )


async def _filled(store: Store, claims: Sequence[LeaseClaim], records: int) -> None:
    """Write a log of so many leases, a page in each transaction."""
    facts = [LeaseFacts(claim) for claim in claims]
    clock = SystemClock()
    async with store.write() as tx:
        await begin_tree(tx, TENANT, SHARD)
    end = TreeEnd.first(store.ring, TENANT, SHARD)
    while end.size < records:
        count = min(_PAGE, records - end.size)
        page = [facts[n % len(facts)].record(clock.now(), "a" * 32) for n in range(count)]
        after = end.appended(store.ring, [record.leaf for record in page])
        async with store.write() as tx:
            rows = [_row(record, number) for number, record in enumerate(page, end.size)]
            await tx.connection.execute(insert(table_of(AuditRow)), rows)
            ours = columns_equal(AuditTreeRow, tenant=TENANT, shard=SHARD)
            moved = {"size": after.size, "peaks": after.peaks, "mac": after.mac}
            await tx.connection.execute(update(AuditTreeRow).where(ours).values(moved))
        end = after


def _row(record: LeaseRecord, number: int) -> dict[str, object]:
    facts = record.facts
    place = {"tenant": TENANT, "shard": SHARD, "seq": number, "at": record.at, "revision": 1}
    said = {"action": facts.action, "object": facts.connection_id, "body": record.body, "leaf": record.leaf}
    return {**place, **said, "erased_mac": None}


def _claims() -> list[LeaseClaim]:
    now = SystemClock().now()
    made = [
        lease_claim(TENANT, ConnectionId(new_id("con")), 1, 1, AppId(new_id("app")), 1, at=now)
        for _ in range(100)
    ]
    context = RequestContext(by="app:pipeline", trace_id="0af7651916cd43dd8448eb211c80319c")
    return [replace(claim, context=context) for claim in made]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def measure(kind: str, url: str, key_file: Path, records: int) -> None:
    await schema.upgrade(url)
    ring, claims = KeyRing.open(key_file, Role.API), _claims()
    store = await Store.open(url, ring, SystemClock())
    try:
        began = perf_counter()
        await _filled(store, claims, records)
        filled, memory, began = perf_counter() - began, _peak_mb(), perf_counter()
        verdict = await audit.verify_log(store, TENANT)
        took = perf_counter() - began
        assert verdict.ok, verdict
        print(
            f"{kind}: {verdict.records:,} records written in {filled:.0f} s, verified in {took:.1f} s"
            f" ({took * 1e6 / verdict.records:.1f} µs each), peak {memory:.0f} MB before,"
            f" {_peak_mb():.0f} MB after",
            flush=True,
        )
    finally:
        await store.close()


async def run(records: int, *, on_postgresql: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="evergrant-bench-") as folder:
        key_file = Path(folder) / "keys.json"
        KeyRing.create(key_file)
        costs = _append_costs(KeyRing.open(key_file, Role.API), _claims())
        for side, (before, under) in costs.items():
            print(f"{side}: {before:.2f} µs before the lock, {under:.2f} µs under it, for each record")
        for kind in ("leases", "other records"):
            share = costs[f"{kind}, tree"][1] / costs[f"{kind}, chain"][1]
            print(f"{kind}, under the lock: {share:.1%} of the chain", flush=True)
        if on_postgresql:
            async with postgresql() as empty_database:
                await measure("PostgreSQL", await empty_database(), key_file, records)
        else:
            await measure("SQLite", f"sqlite:///{folder}/evergrant.db", key_file, records)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--postgresql", action="store_true")
    options = parser.parse_args()
    asyncio.run(run(options.records, on_postgresql=options.postgresql))
