"""The hash chain of before, as far as a measurement needs it: its records of leases, and its ledger.

Queue, judgement and commits are those of today, so what differs is what a record costs.
"""

import asyncio
import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import text

from bench.installation import TENANT, Installation, prepare, token_reply
from bench.ledger import lease_claim
from bench.processes import postgresql, sqlite
from evergrant_server.audit.bodies import canonical_json, format_timestamp
from evergrant_server.audit.chains import GENESIS_HASH, ChainEnd
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.audit.lease_queue import LastUses
from evergrant_server.audit.lease_record import LeaseClaim, LeaseFacts, LeaseRecord
from evergrant_server.audit.lease_writer_postgresql import PostgresLeaseWriter
from evergrant_server.audit.lease_writer_sqlite import SqliteLeaseWriter
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import END_ACTIONS
from evergrant_server.store.database.kept_sqlite import KeptSqlite

SHARD = "bench-1"
CALLERS = 64
_TRACE = "0af7651916cd43dd8448eb211c80319c"
_ROUNDS = 3  # the sides alternate, so that other load on the machine affects both
_COLUMNS = (
    *("tenant", "shard", "seq", "at", "action", "object", "by", "trace_id", "detail", "previous_hash"),
    *("hash", "revision"),
)
_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
)
_TABLES = (
    "CREATE TABLE audit_chained (tenant VARCHAR NOT NULL, revision INTEGER NOT NULL, shard VARCHAR NOT NULL,"
    " seq BIGINT NOT NULL, at {moment} NOT NULL, action VARCHAR NOT NULL, object VARCHAR NOT NULL,"
    " by VARCHAR NOT NULL, trace_id VARCHAR NOT NULL, detail TEXT NOT NULL, workflow_id VARCHAR,"
    " run_id VARCHAR, event_id INTEGER, previous_hash VARCHAR NOT NULL, hash VARCHAR NOT NULL,"
    " erased_mac VARCHAR, PRIMARY KEY (tenant, shard, seq))",
    "CREATE INDEX chained_object ON audit_chained (tenant, object, at)",
    "CREATE INDEX chained_at ON audit_chained (tenant, at)",
    "CREATE INDEX chained_end ON audit_chained (tenant, object) WHERE action IN ({})".format(
        ", ".join(f"'{action.value}'" for action in END_ACTIONS)
    ),
    "CREATE INDEX chained_access ON audit_chained (tenant, at) WHERE ({})".format(
        " OR ".join(f"action LIKE '{word}.%'" for word in _WORDS)
    ),
)
_INSERT = f"INSERT INTO audit_chained ({', '.join(_COLUMNS)})"
_LITE_RECORDS = f"{_INSERT} VALUES ({', '.join('?' for _ in _COLUMNS)})"
_LITE_MOVED = (
    "UPDATE audit_shard SET count = ?, last_hash = ?, mac = ?, revision = revision + 1"
    " WHERE tenant = ? AND shard = ?"
)
# as it was, but for the name of the table; what follows the locks is that of today's function
_PG_FUNCTION = """
CREATE FUNCTION record_chained(
    of_tenant varchar, of_shard varchar,
    old_count bigint, old_hash varchar, old_mac varchar, new_mac varchar,
    locks varchar[], connections varchar[], revisions integer[], generations integer[],
    apps varchar[], app_revisions integer[],
    moments timestamptz[], actions varchar[], objects varchar[], callers varchar[], traces varchar[],
    details text[], hashes varchar[]
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    unchanged integer;
BEGIN
    SELECT count(*) INTO unchanged FROM unnest(locks) AS named(id)
    WHERE pg_try_advisory_xact_lock_shared(hashtextextended(named.id, 0));
    IF unchanged < cardinality(locks) THEN
        RETURN false;
    END IF;
    SELECT count(*) INTO unchanged
    FROM unnest(connections, revisions, generations) AS named(id, revision, generation)
    JOIN connection c ON c.tenant = of_tenant AND c.id = named.id AND c.revision = named.revision
    AND c.generation = named.generation AND c.state IN ('active', 'needs_reauth');
    IF unchanged < cardinality(connections) THEN
        RETURN false;
    END IF;
    SELECT count(*) INTO unchanged FROM unnest(apps, app_revisions) AS named(id, revision)
    JOIN app a ON a.tenant = of_tenant AND a.id = named.id AND a.revision = named.revision AND NOT a.disabled
    JOIN tenant_standing s ON s.tenant = of_tenant AND s.id = of_tenant AND NOT s.disabled;
    IF unchanged < cardinality(apps) THEN
        RETURN false;
    END IF;
    UPDATE audit_shard e
    SET count = old_count + cardinality(hashes), last_hash = hashes[cardinality(hashes)], mac = new_mac,
        revision = e.revision + 1
    WHERE e.tenant = of_tenant AND e.shard = of_shard
    AND e.count = old_count AND e.last_hash = old_hash AND e.mac = old_mac;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO audit_chained
        (tenant, shard, seq, at, action, object, by, trace_id, detail, previous_hash, hash, revision)
    SELECT of_tenant, of_shard, old_count + r.n, r.moment, r.action, r.object, r.caller, r.trace, r.detail,
        coalesce(hashes[r.n - 1], old_hash), r.hash, 1
    FROM unnest(moments, actions, objects, callers, traces, details, hashes)
    WITH ORDINALITY AS r(moment, action, object, caller, trace, detail, hash, n);
    INSERT INTO usage AS u (tenant, connection_id, leased_generation, revision)
    SELECT of_tenant, named.id, named.generation, 1
    FROM unnest(connections, generations) AS named(id, generation)
    WHERE NOT EXISTS (
        SELECT FROM usage known WHERE known.tenant = of_tenant AND known.connection_id = named.id
        AND known.leased_generation >= named.generation
    )
    ON CONFLICT (tenant, connection_id) DO UPDATE
    SET leased_generation = excluded.leased_generation, revision = u.revision + 1
    WHERE u.leased_generation < excluded.leased_generation;
    RETURN true;
END
$$
"""
_AS_TEXT = (7, 8, 11, 14, 15, 16, 17, 18, 19)  # arrays that go as one text, as those of today
_PG_RECORD = "SELECT record_chained({})".format(
    ", ".join(
        f"string_to_array(${place}, E'\\x1f')" if place in _AS_TEXT else f"${place}" for place in range(1, 20)
    )
)


class ChainedRecord(NamedTuple):
    """The record of one lease, without its place."""

    facts: "ChainedFacts"
    at: datetime
    moment: str
    trace_id: str
    head: str
    tail: str

    def hash_behind(self, previous: str, seq: int) -> str:
        place = f'"previous_hash":"{previous}","run_id":null,"seq":{seq},'
        return hashlib.sha256(f"{self.head}{place}{self.tail}".encode()).hexdigest()


class ChainedFacts(LeaseFacts):
    """The leases of one pair as the chain records them: whole under its lock alone."""

    __slots__ = ("_chained_head", "_chained_place", "_chained_tail", "by", "detail")

    def __init__(self, claim: LeaseClaim) -> None:
        super().__init__(claim)
        named = {"app": claim.app_id, "generation": claim.generation, "scopes": list(claim.scopes)}
        self.by, self.detail = claim.context.by, canonical_json(named)
        self._chained_head = f'{{"action":"{self.action}","at":"'
        self._chained_place = (
            f'","by":{quoted(self.by)},"detail":{self.detail},"event_id":null,"format":1,'
            f'"object":{quoted(claim.connection_id)},'
        )
        self._chained_tail = f'"shard":{quoted(SHARD)},"tenant":{quoted(claim.tenant)},"trace_id":'

    def record(self, at: datetime, trace_id: str) -> LeaseRecord:
        """A `ChainedRecord`: the queue carries either."""
        moment = format_timestamp(at)
        head = f"{self._chained_head}{moment}{self._chained_place}"
        tail = f'{self._chained_tail}{quoted(trace_id)},"workflow_id":null}}'
        return cast(LeaseRecord, ChainedRecord(self, at, moment, trace_id, head, tail))


class _ChainedSqlite(SqliteLeaseWriter):
    _chain: ChainEnd

    def begin(self, end: ChainEnd) -> None:
        self._chain = end

    def _expect(self, batch: Any) -> dict[Tenant, Any]:
        return {}

    def _append(self, raw: sqlite3.Connection, tenant: Tenant, records: Sequence[LeaseRecord]) -> int:
        end, rows = self._chain, list[tuple[object, ...]]()
        previous = end.last_hash
        for seq, record in enumerate(cast("Sequence[ChainedRecord]", records), end.count + 1):
            digest, facts = record.hash_behind(previous, seq), record.facts
            at = f"{record.moment[:10]} {record.moment[11:26]}"
            place = (tenant, self._shard, seq, at, facts.action, facts.connection_id)
            rows.append((*place, facts.by, record.trace_id, facts.detail, previous, digest, 1))
            previous = digest
        raw.executemany(_LITE_RECORDS, rows)
        self._chain = after = _moved(self._ring, end, len(rows), previous)
        raw.execute(_LITE_MOVED, (after.count, after.last_hash, after.mac, tenant, self._shard))
        return end.count + 1


class _ChainedPostgres(PostgresLeaseWriter):
    _chain: ChainEnd

    def begin(self, end: ChainEnd) -> None:
        self._chain = end

    async def _write_at_once(self, raw: Any, tenants: Any, uses: LastUses) -> dict[int, int] | None:
        ((_, by_place),) = tenants
        records, end = cast("list[ChainedRecord]", [*by_place.values()]), self._chain
        previous, hashes = end.last_hash, list[str]()
        for seq, record in enumerate(records, end.count + 1):
            previous = record.hash_behind(previous, seq)
            hashes.append(previous)
        after = _moved(self._ring, end, len(records), previous)
        connections = {record.facts.connection_id: record.facts.connection for record in records}
        apps = {record.facts.app_id: record.facts.app for record in records}
        named = set[str]().union(*(record.facts.named for record in records))
        ids, _, revisions, generations = zip(*connections.values(), strict=True)
        app_ids, _, app_revisions, _ = zip(*apps.values(), strict=True)
        of_end = (end.tenant, end.shard, end.count, end.last_hash, end.mac, after.mac)
        arguments = [*of_end, sorted(named), ids, revisions, generations, app_ids, app_revisions]
        arguments += map(list, zip(*(_texts_of(record) for record in records), strict=True))
        arguments.append(hashes)
        for place in _AS_TEXT:
            arguments[place - 1] = "\x1f".join(arguments[place - 1])
        if not await raw.fetchval(_PG_RECORD, *arguments):
            raise RuntimeError("the chain isn't as it was")
        self._chain = after
        return dict(zip(by_place, range(end.count + 1, after.count + 1), strict=True))


def _texts_of(record: ChainedRecord) -> tuple[object, ...]:
    facts = record.facts
    return record.at, facts.action, facts.connection_id, facts.by, record.trace_id, facts.detail


def _moved(ring: KeyRing, end: ChainEnd, count: int, last_hash: str) -> ChainEnd:
    after = end._replace(count=end.count + count, last_hash=last_hash)
    return after._replace(mac=after.made(ring))


class ChainedLedger(LeaseLedger):
    """A ledger that appends to a chain of before, in a table of its own."""

    async def start(self) -> None:
        await super().start()
        await self._writer.close()
        kept = self._store.kept()
        make = _ChainedSqlite if isinstance(kept, KeptSqlite) else _ChainedPostgres
        writer = cast(Any, make)(kept, self._shard, self._store.ring, self._clock)
        end = ChainEnd(TENANT, self._shard, 0, GENESIS_HASH, None)
        end = end._replace(mac=end.made(self._store.ring))
        async with self._store.write() as tx:
            is_sqlite = tx.connection.dialect.name == "sqlite"
            for statement in _TABLES:
                moment = "DATETIME" if is_sqlite else "TIMESTAMP WITH TIME ZONE"
                await tx.connection.execute(text(statement.replace("{moment}", moment)))
            if not is_sqlite:
                await tx.connection.execute(text(_PG_FUNCTION))
            names = ("tenant", "shard", "count", "last_hash", "mac")
            values = ", ".join(f":{name}" for name in names)
            row = f"INSERT INTO audit_shard ({', '.join(names)}, revision) VALUES ({values}, 1)"
            await tx.connection.execute(text(row), end._asdict())
        writer.begin(end)
        self._writer, self._write = writer, writer.write


@dataclass
class _Side:
    """One of the two ledgers: records, and the seconds of the clock and of CPU, that of a database's server
    (the number of its first process) included."""

    ledger: LeaseLedger
    pairs: Any
    server: int | None
    records: int = 0
    seconds: float = 0
    cpu: float = 0

    async def run(self, records: int) -> None:
        left, clock = records, SystemClock()

        async def call() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.ledger.record_pair(next(self.pairs), clock.now(), _TRACE)

        began, cpu = time.perf_counter(), self._cpu()
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        self.seconds += time.perf_counter() - began
        self.cpu += self._cpu() - cpu
        self.records += records

    def _cpu(self) -> float:
        spent = time.process_time()
        for file in Path("/proc").glob("[0-9]*/stat") if self.server is not None else ():
            with suppress(OSError):  # it has ended
                fields = file.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.server:
                    spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return spent


async def compare_ledgers(kind: str, ready: Installation, records: int) -> None:
    """Print what a record costs in a ledger of a chain and in today's, in turns, with 64 callers."""
    settings, clock = ready.settings, SystemClock()
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.API), clock)
    claims, server = [_claim(ready, number) for number in range(len(ready.connections))], await _server(store)
    facts = cycle([ChainedFacts(claim) for claim in claims]), cycle([LeaseFacts(claim) for claim in claims])
    chain = _Side(ChainedLedger(store, SHARD, clock), facts[0], server)
    trees = _Side(LeaseLedger(store, "bench-2", clock), facts[1], server)
    try:
        for side in (chain, trees):
            await side.ledger.start()
            await side.run(2_000)  # the first of each connection and key write more
        for side in (chain, trees):
            side.records, side.seconds, side.cpu = 0, 0, 0
        for _ in range(_ROUNDS):
            for side in (chain, trees):
                await side.run(records // _ROUNDS)
    finally:
        for side in (chain, trees):
            await side.ledger.stop()
        await store.close()
    for name, side in (("chain", chain), ("trees", trees)):
        print(
            f"{kind}, ledger alone, {CALLERS} callers, {name}: {side.records / side.seconds:,.0f} records a"
            f" second, {side.cpu * 1e6 / side.records:.1f} µs of CPU each"
        )
    wall = trees.records / trees.seconds / (chain.records / chain.seconds)
    print(f"{kind}, trees to chain: {wall:.2f} by the clock, {chain.cpu / trees.cpu:.2f} by CPU", flush=True)


async def _server(store: Store) -> int | None:
    """The first process of PostgreSQL; None for SQLite."""
    async with store.read() as tx:
        if tx.connection.dialect.name == "sqlite":
            return None
        own = (await tx.connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    return _parent_of(own)


def _parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _claim(ready: Installation, number: int) -> LeaseClaim:
    row, app = ready.connections[number], ready.app
    return lease_claim(TENANT, row.id, row.revision, row.generation, app.id, app.revision, at=row.created_at)


@asynccontextmanager
async def _installation(*, on_postgresql: bool) -> AsyncIterator[Installation]:
    """In memory where that is a folder: a disk's flush takes longer than all that differs."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="evergrant-bench-", dir=shared) as name:
        folder, grants = Path(name), [token_reply() for _ in range(500)]
        if on_postgresql:
            async with postgresql() as empty_database:
                yield await prepare(folder, await empty_database(), 1, grants)
        else:
            yield await prepare(folder, sqlite(folder), 1, grants)


async def run(records: int, *, on_postgresql: bool) -> None:
    async with _installation(on_postgresql=on_postgresql) as ready:
        await compare_ledgers("PostgreSQL" if on_postgresql else "SQLite", ready, records)
