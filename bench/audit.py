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
from evergrant_server.audit.filing import file_leases
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
_BATCHES = 800  # of each side
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


class _Appending:
    """Appends batches to the chain and to the tree, and measures each before the lock and under it."""

    def __init__(self, ring: KeyRing, claims: Sequence[LeaseClaim]) -> None:
        self._ring, self._now = ring, SystemClock().now()
        self._traces = [new_id("out")[-8:] * 4 for _ in range(_BATCH)]
        self._chained = [ChainedLease(claim) for claim in claims[:_BATCH]]
        self._facts = [LeaseFacts(claim) for claim in claims[:_BATCH]]
        self._entries = [_entry(claim, self._now) for claim in claims[:_BATCH]]
        self._previous, self._count, self._end = "0" * 64, 0, TreeEnd.first(ring, TENANT, SHARD)

    def run(self, batches: int) -> dict[str, tuple[float, float]]:
        """Microseconds for each record, in turns, so that the machine's load is that of all sides."""
        sides = (self.leases_in_chain, self.leases_in_tree, self.others_in_chain, self.others_in_tree)
        spent = {side.__name__: [0.0, 0.0] for side in sides}
        for _ in range(batches):
            for side in sides:
                began = perf_counter()
                locked = side()
                spent[side.__name__][0] += locked - began
                spent[side.__name__][1] += perf_counter() - locked
        each = 1e6 / (batches * _BATCH)
        return {name: (before * each, under * each) for name, (before, under) in spent.items()}

    def leases_in_chain(self) -> float:
        """As each of these: returns when the lock was taken."""
        pieces = [
            facts.record(self._now, trace) for facts, trace in zip(self._chained, self._traces, strict=True)
        ]
        locked = perf_counter()
        for piece in pieces:
            self._count += 1
            self._previous = ChainedLease.hash_behind(piece, self._previous, self._count)
        self._sign_chain()
        return locked

    def leases_in_tree(self) -> float:
        records = [
            facts.record(self._now, trace) for facts, trace in zip(self._facts, self._traces, strict=True)
        ]
        expected = self._end, self._end.appended(self._ring, [record.leaf for record in records])
        locked = perf_counter()  # what both writers append is made before, and compared with the end
        if expected[0] == self._end:
            self._end = expected[1]
        return locked

    def others_in_chain(self) -> float:
        locked = perf_counter()
        for entry in self._entries:
            self._count += 1
            self._previous = chained_hash(entry, self._previous, self._count)
        self._sign_chain()
        return locked

    def others_in_tree(self) -> float:
        leaves = [leaf_hash(body_of(entry).encode()) for entry in self._entries]
        locked = perf_counter()
        self._end = self._end.appended(self._ring, leaves)
        return locked

    def _sign_chain(self) -> None:
        self._ring.keyed_hash("audit head", TENANT, SHARD, self._count, self._previous)


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
        began = perf_counter()
        await file_leases(store)
        print(f"filed by their objects in {(perf_counter() - began) * 1e6 / verdict.records:.1f} µs each")
        for object in (None, claims[0].connection_id):
            for newest_first in (False, True):
                began = perf_counter()
                async with store.read() as tx:
                    page = await audit.page(tx, TENANT, object=object, limit=100, newest_first=newest_first)
                about = "of a connection" if object else "of the tenant"
                took = (perf_counter() - began) * 1000
                print(f"a page of {len(page)} records {about}, newest first {newest_first}: {took:.1f} ms")
    finally:
        await store.close()


async def run(records: int, *, on_postgresql: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="evergrant-bench-") as folder:
        key_file = Path(folder) / "keys.json"
        KeyRing.create(key_file)
        costs = _Appending(KeyRing.open(key_file, Role.API), _claims()).run(_BATCHES)
        for side, (before, under) in costs.items():
            print(f"{side}: {before:.2f} µs before the lock, {under:.2f} µs under it, for each record")
        for kind in ("leases", "others"):
            share = costs[f"{kind}_in_tree"][1] / costs[f"{kind}_in_chain"][1]
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
