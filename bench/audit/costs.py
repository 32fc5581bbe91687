"""What records cost in a tree, and in the chain of before.

Appending is measured in memory, a batch of 64 leases at a time as the ledger takes them: what is done before
the lock of the tree, and under it; then with the ledger alone. Then a log of leases of a year is written and
verified, with the memory that takes, and pages of it are read.
"""

import hashlib
import json
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

from sqlalchemy import insert, select, text, update

from bench.audit.chained import SHARD, ChainedFacts, ChainedRecord
from bench.audit.chained import run as compare_ledgers
from bench.ledger import lease_claim
from bench.processes import postgresql
from evergrant_server import audit
from evergrant_server.audit.appending import TreeEnd, begin_tree
from evergrant_server.audit.bodies import body_of, canonical_json, format_timestamp, record_of
from evergrant_server.audit.filing import file_leases
from evergrant_server.audit.lease_record import LeaseClaim, LeaseFacts, LeaseRecord
from evergrant_server.audit.merkle_tree import leaf_hash
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import AppId, ConnectionId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_tables import AuditRow, AuditTreeRow
from evergrant_server.store.database import schema
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import columns_equal, fetch_all, fetch_first

TENANT = Tenant("bench")
_OF_LEDGERS = 60_000  # records of each, alone
_BATCH = 64  # leases of a commit
_BATCHES = 800  # of each side
_PAGE = 4_096  # records of a transaction that fills the log
_PAGES = 20  # that are read of each kind
_YEAR = timedelta(days=365)


class _Appending:
    """Appends batches to the chain and to the tree, and measures each before the lock and under it."""

    def __init__(self, ring: KeyRing, claims: Sequence[LeaseClaim]) -> None:
        self._ring, self._now = ring, SystemClock().now()
        self._traces = [new_id("out")[-8:] * 4 for _ in range(_BATCH)]
        self._chained = [ChainedFacts(claim) for claim in claims[:_BATCH]]
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
        records = [
            cast(ChainedRecord, facts.record(self._now, trace))
            for facts, trace in zip(self._chained, self._traces, strict=True)
        ]
        locked = perf_counter()
        for record in records:
            self._count += 1
            self._previous = record.hash_behind(self._previous, self._count)
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


async def filled(
    store: Store, shard: str, leased: Sequence[LeaseClaim], records: int, over: timedelta = timedelta(0)
) -> None:
    """Write leases to a shard until it has so many, a page in each transaction, as if they were leased over
    this time until now."""
    facts = [LeaseFacts(claim) for claim in leased]
    clock, tree = SystemClock(), columns_equal(AuditTreeRow, tenant=TENANT, shard=shard)
    async with store.write() as tx:
        await begin_tree(tx, TENANT, shard)
        row = await fetch_first(tx.connection, select(AuditTreeRow).where(tree))
    assert row is not None
    end = TreeEnd(**{name: row[name] for name in TreeEnd._fields})
    while end.size < records:
        count = min(_PAGE, records - end.size)
        moments = [
            clock.now() - over * (1 - number / records) for number in range(end.size, end.size + count)
        ]
        page = [facts[n % len(facts)].record(at, "a" * 32) for n, at in enumerate(moments, end.size)]
        after = end.appended(store.ring, [record.leaf for record in page])
        async with store.write() as tx:
            rows = [_row(record, shard, number) for number, record in enumerate(page, end.size)]
            await tx.connection.execute(insert(table_of(AuditRow)), rows)
            moved = {"size": after.size, "peaks": after.peaks, "mac": after.mac}
            await tx.connection.execute(update(AuditTreeRow).where(tree).values(moved))
        end = after


def _row(record: LeaseRecord, shard: str, number: int) -> dict[str, object]:
    facts = record.facts
    place = {"tenant": TENANT, "shard": shard, "seq": number, "at": record.at, "revision": 1}
    copies = {"action": facts.action, "object": facts.connection_id}
    return {**place, **copies, "body": record.body, "leaf": record.leaf, "erased_mac": None}


def claims() -> list[LeaseClaim]:
    """Of a hundred connections, each of an app of its own."""
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
    ring, leased = KeyRing.open(key_file, Role.API), claims()
    store = await Store.open(url, ring, SystemClock())
    try:
        began = perf_counter()
        await filled(store, SHARD, leased, records, over=_YEAR)
        written, memory, began = perf_counter() - began, _peak_mb(), perf_counter()
        verdict = await audit.verify_log(store, TENANT)
        took = perf_counter() - began
        assert verdict.ok, verdict
        print(
            f"{kind}: {verdict.records:,} records written in {written:.0f} s, verified in {took:.1f} s"
            f" ({took * 1e6 / verdict.records:.1f} µs each), peak {memory:.0f} MB before,"
            f" {_peak_mb():.0f} MB after",
            flush=True,
        )
        began = perf_counter()
        await file_leases(store)
        print(f"filed by their objects in {(perf_counter() - began) * 1e6 / verdict.records:.1f} µs each")
        await measure_pages(store, leased[0].connection_id)
    finally:
        await store.close()


async def measure_pages(store: Store, connection_id: str) -> None:
    """Print what pages of a year take: of the tenant, of a connection as its leases are filed, and by the
    index over every record by its object that there was before."""
    records = table_of(AuditRow).c
    mine = (records.tenant == TENANT) & (records.object == connection_id)
    async with store.write() as tx:
        await tx.connection.execute(text("CREATE INDEX bench_object ON audit (tenant, object, at)"))
    for newest_first in (False, True):
        order = [column.desc() if newest_first else column for column in (records.at, records.seq)]
        direction = "newest" if newest_first else "oldest"

        async def page(tx: Transaction, object: str | None, reverse: bool = newest_first) -> Sequence[object]:
            return await audit.page(tx, TENANT, object=object, limit=100, newest_first=reverse)

        async def before(tx: Transaction, order: Any = order) -> Sequence[object]:
            query = select(AuditRow).where(mine).order_by(*order).limit(100)
            return [record_of(row) for row in await fetch_all(tx.connection, query)]

        for name, read in (
            ("of the tenant", lambda tx: page(tx, None)),
            ("of a connection", lambda tx: page(tx, connection_id)),
            ("of a connection, by the index of before", before),
        ):
            times: list[float] = []
            for _ in range(_PAGES):
                began = perf_counter()
                async with store.read() as tx:
                    assert await read(tx)
                times.append((perf_counter() - began) * 1000)
            print(f"a page of 100 records {name}, the {direction} first: {median(times):.1f} ms", flush=True)


async def run(records: int, *, on_postgresql: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="evergrant-bench-") as folder:
        key_file = Path(folder) / "keys.json"
        KeyRing.create(key_file)
        costs = _Appending(KeyRing.open(key_file, Role.API), claims()).run(_BATCHES)
        for side, (before, under) in costs.items():
            print(f"{side}: {before:.2f} µs before the lock, {under:.2f} µs under it, for each record")
        for kind in ("leases", "others"):
            share = costs[f"{kind}_in_tree"][1] / costs[f"{kind}_in_chain"][1]
            print(f"{kind}, under the lock: {share:.1%} of the chain", flush=True)
        await compare_ledgers(min(_OF_LEDGERS, records), on_postgresql=on_postgresql)
        if on_postgresql:
            async with postgresql() as empty_database:
                await measure("PostgreSQL", await empty_database(), key_file, records)
        else:
            await measure("SQLite", f"sqlite:///{folder}/evergrant.db", key_file, records)
