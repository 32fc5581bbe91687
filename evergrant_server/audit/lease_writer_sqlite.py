"""Writes batches of leases to SQLite, on a connection of the ledger's own.

`PRAGMA data_version` moves when another connection has committed, of any process. Inside an IMMEDIATE
transaction none can: while the version is that of the last batch, the revisions and the ends of trees that
were read then still hold, and nothing is read again.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evergrant_server.audit.appending import TreeEnd
from evergrant_server.audit.lease_queue import (
    APPS,
    CONNECTIONS,
    END,
    LEASABLE,
    RAISED_USAGE,
    LastUses,
    TreeMissing,
    WaitingLease,
    Written,
    app_ids,
    awaited,
    by_tenant,
    delegated_uses,
    is_unchanged,
    numbered,
    write_uses_sqlite,
)
from evergrant_server.audit.lease_record import LeaseRecord, rows_sqlite
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.store.database.errors import translate_errors
from evergrant_server.store.database.kept_sqlite import KeptSqlite

_MOST_REMEMBERED = 20_000  # rows of a kind
_COLUMNS = ("tenant", "shard", "seq", "at", "action", "object", "body", "leaf")
_CONNECTIONS = CONNECTIONS + "IN (SELECT value FROM json_each(?))"
_APPS = APPS.format("(SELECT value AS id FROM json_each(?)) AS named")
_END = END.format("?", "?")
_RECORDS = f"INSERT INTO audit ({', '.join(_COLUMNS)}, revision) VALUES ({'?, ' * len(_COLUMNS)}1)"
_MOVED = (
    "UPDATE audit_tree SET size = ?, peaks = ?, mac = ?, revision = revision + 1"
    " WHERE tenant = ? AND shard = ?"
)
_USAGE = (
    "INSERT INTO usage (tenant, connection_id, leased_generation, revision) VALUES (?, ?, ?, 1)"
    + RAISED_USAGE
)


class SqliteLeaseWriter:
    def __init__(self, kept: KeptSqlite, shard: str, ring: KeyRing, clock: Clock) -> None:
        self._kept, self._shard, self._ring, self._clock = kept, shard, ring, clock
        self._rows = _KnownRows()
        self._expected: dict[Tenant, _Append] = {}

    async def write(self, batch: Sequence[WaitingLease], uses: LastUses) -> Written:
        """Commit what still holds. Raises TreeMissing and Failure; then nothing is in the log.

        All that is remembered is forgotten with a transaction that didn't commit.
        """
        try:
            with translate_errors():
                self._expected = self._expect(batch)
                async with self._kept.transaction() as raw:
                    return Written(self._written(raw, batch, uses), frozenset())
        except BaseException:
            self._rows = _KnownRows()
            raise

    async def close(self) -> None:
        await self._kept.close()

    def _expect(self, batch: Sequence[WaitingLease]) -> dict[Tenant, "_Append"]:
        """What the batch will append, if nothing has changed: hashed before the database is locked."""
        records = awaited(batch, self._clock.now())
        return {
            tenant: _Append.of(end, [*of_tenant.values()], self._ring)
            for tenant, of_tenant in by_tenant(records)
            if (end := self._rows.ends.get(tenant)) is not None
        }

    def _written(
        self, raw: sqlite3.Connection, batch: Sequence[WaitingLease], uses: LastUses
    ) -> dict[int, int]:
        waiting = awaited(batch, self._clock.now())
        rows = self._rows = self._rows.as_of(raw)
        rows.read(raw, waiting.values())
        delegations = rows_sqlite(raw, delegated_uses(waiting.values()))
        good = {
            place: record
            for place, record in waiting.items()
            if is_unchanged(record, rows.connections, rows.apps, delegations)
        }
        numbers: dict[int, int] = {}
        for tenant, records in by_tenant(good):
            numbers |= numbered(records, self._append(raw, tenant, [*records.values()]))
        self._raise_usage(raw, good.values())
        write_uses_sqlite(raw, uses)
        return numbers

    def _append(self, raw: sqlite3.Connection, tenant: Tenant, records: Sequence[LeaseRecord]) -> int:
        """Write the records behind the tenant's last; returns the number of the first."""
        end, shard = self._rows.ends.get(tenant) or self._read_end(raw, tenant), self._shard
        rows = [
            (tenant, shard, number, _sqlite_text(moment), facts.action, facts.connection_id, body, leaf)
            for number, (facts, _, moment, body, leaf) in enumerate(records, end.size)
        ]
        raw.executemany(_RECORDS, rows)
        expected = self._expected.get(tenant)
        if expected is None or expected.end != end or expected.records != records:
            expected = _Append.of(end, records, self._ring)
        after = expected.after
        raw.execute(_MOVED, (after.size, after.peaks, after.mac, tenant, self._shard))
        self._rows.ends[tenant] = after
        return end.size

    def _read_end(self, raw: sqlite3.Connection, tenant: Tenant) -> TreeEnd:
        """Raises TreeMissing, and Failure AUTHORITY_BROKEN: no token leaves behind records that were cut or
        rewritten."""
        row = raw.execute(_END, (tenant, self._shard)).fetchone()
        if row is None:
            raise TreeMissing(tenant)
        end = TreeEnd(tenant, self._shard, *row)
        if not end.is_authentic(self._ring):
            raise end.broken
        return end

    def _raise_usage(self, raw: sqlite3.Connection, records: Iterable[LeaseRecord]) -> None:
        generations = self._rows.generations
        raised: dict[tuple[str, str], int] = {}
        for record in records:
            facts = record.facts
            key = (facts.tenant, facts.connection_id)
            if max(generations.get(key, 0), raised.get(key, 0)) < facts.generation:
                raised[key] = facts.generation
        if raised:
            raw.executemany(_USAGE, [(*key, generation) for key, generation in raised.items()])
            generations.update(raised)


def _sqlite_text(moment: str) -> str:
    """The moment of a body as SQLAlchemy writes it."""
    return f"{moment[:10]} {moment[11:26]}"


class _Append(NamedTuple):
    """The end of a tree before and after these records."""

    end: TreeEnd
    records: Sequence[LeaseRecord]
    after: TreeEnd

    @classmethod
    def of(cls, end: TreeEnd, records: Sequence[LeaseRecord], ring: KeyRing) -> "_Append":
        return cls(end, records, end.appended(ring, [record.leaf for record in records]))


class _KnownRows:
    """What the ledger read, or wrote itself, while the data had one version."""

    def __init__(self, version: int | None = None) -> None:
        self._version = version
        self.connections: dict[str, tuple[object, ...]] = {}  # leasable ones
        self.apps: dict[str, tuple[object, ...]] = {}
        self.ends: dict[str, TreeEnd] = {}  # authentic ones
        self.generations: dict[tuple[str, str], int] = {}  # leased ones, by tenant and connection

    def as_of(self, raw: sqlite3.Connection) -> "_KnownRows":
        """These, unless another connection has committed since, or they have become too many."""
        (version,) = raw.execute("PRAGMA data_version").fetchone()
        size = max(len(self.connections), len(self.apps), len(self.ends))
        return self if version == self._version and size < _MOST_REMEMBERED else _KnownRows(version)

    def read(self, raw: sqlite3.Connection, records: Iterable[LeaseRecord]) -> None:
        """Read what isn't known yet of connections and apps."""
        connections = {record.facts.connection_id for record in records} - self.connections.keys()
        if connections:
            rows = raw.execute(_CONNECTIONS, (json.dumps(sorted(connections)),))
            self.connections.update({row[0]: row[:4] for row in rows if row[4] in LEASABLE})
        apps = app_ids(records) - self.apps.keys()
        if apps:
            self.apps.update({row[0]: row for row in raw.execute(_APPS, (json.dumps(sorted(apps)),))})
