"""Writes batches of leases to PostgreSQL, on a connection of the ledger's own.

The function `record_leases` (migrations/versions/0007) writes a tenant's leases in one round trip, behind the
end of the tree that is remembered. It writes nothing when something isn't as it was: then the batch is
written with care, statement by statement, which finds out what that is.

A change of what a lease names waits for the batch: it commits before or after the lease is in the log, never
in between (the other side is the trigger `exclude_leases`). The batch waits for no change: a lease whose row
is being changed is judged with a later batch, and those beside it don't wait.

Where there is another region, the same statement looks whether this one has the authority, and for how long;
what comes back later than that is discarded (ADR 0137).
"""

from collections.abc import Mapping, Sequence
from typing import Any

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
    newest_generations,
    numbered,
    write_uses_postgresql,
)
from evergrant_server.audit.lease_record import LeaseRecord, rows_postgresql
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.store.database.engine import KeptPostgres
from evergrant_server.store.database.errors import translate_errors
from evergrant_server.store.regions import REMAINING

_MOST_REMEMBERED = 20_000  # ends of trees
_KEEPS_SESSION = (ErrorCode.AUTHORITY_BROKEN, ErrorCode.REGION_FENCED)  # refused before anything was written
# The driver looks ten times at every element of a list, so arrays without an empty element go as one text.
_AS_TEXT = (8, 9, 12, 15, 16, 17)  # locks, connections, apps, actions, objects, bodies
_RETRY_AFTER_S = 1.0
_SEPARATOR = "\x1f"  # in no id or name, and JSON escapes it
_CALL = "record_leases({})".format(
    ", ".join(
        f"string_to_array(${place}, E'\\x1f')" if place in _AS_TEXT else f"${place}" for place in range(1, 19)
    )
)
_RECORD = f"SELECT {_CALL}"
_RECORD_BY_AUTHORITY = (
    f"SELECT remaining, CASE WHEN remaining > 0 THEN {_CALL} END FROM ({REMAINING}$19) AS authority"
)
_REMAINING = REMAINING + "$1"
_LOCKS = (
    "SELECT id FROM unnest($1::varchar[]) AS id"
    " WHERE pg_try_advisory_xact_lock_shared(hashtextextended(id, 0))"
)
_CONNECTIONS = CONNECTIONS + "= ANY($1::varchar[])"
_APPS = APPS.format("unnest($1::varchar[]) AS named(id)")
_END = END.format("$1", "$2")
_LOCKED_END = _END + " FOR UPDATE"
_TYPES = {
    "seq": "bigint", "at": "timestamptz", "action": "varchar", "object": "varchar", "body": "text",
    "leaf": "bytea",
}  # fmt: skip
_RECORDS = (
    "WITH moved AS (UPDATE audit_tree SET size = $3, peaks = $4, mac = $5, revision = revision + 1"
    f" WHERE tenant = $1 AND shard = $2)"
    f" INSERT INTO audit (tenant, shard, revision, {', '.join(_TYPES)})"
    " SELECT $1, $2, 1, *"
    f" FROM unnest({', '.join(f'${n}::{kind}[]' for n, kind in enumerate(_TYPES.values(), 6))})"
)
_USAGE = (
    "INSERT INTO usage (tenant, connection_id, leased_generation, revision)"
    " SELECT *, 1 FROM unnest($1::varchar[], $2::varchar[], $3::integer[])" + RAISED_USAGE
)


class PostgresLeaseWriter:
    def __init__(
        self, kept: KeptPostgres, shard: str, ring: KeyRing, clock: Clock, region: str | None = None
    ) -> None:
        """`region`: this one's name, where there is another; it leases while it has the authority."""
        self._kept, self._shard, self._ring, self._clock = kept, shard, ring, clock
        self._region, self._lease_until = region, 0.0  # seconds since boot: of the batch that is written
        self._ends: Bounded[str, TreeEnd] = Bounded(_MOST_REMEMBERED)  # authentic ones, by tenant

    async def write(self, batch: Sequence[WaitingLease], uses: LastUses) -> Written:
        """Commit what still holds and isn't being changed. Raises TreeMissing and Failure; REGION_FENCED
        where another region may serve.

        No caller may have its lease then, though it may be in the log: a commit's answer can be lost.
        """
        try:
            with translate_errors():
                written = await self._written(await self._kept.driver(), batch, uses)
            if self._region is not None and seconds_since_boot() > self._lease_until:
                raise _fenced()  # the commit's answer came after the authority's end
            return written
        except TreeMissing:
            await self._kept.close()  # the tree is begun by a connection of the pool
            raise
        except BaseException as error:
            self._ends.clear()
            if not (isinstance(error, Failure) and error.code in _KEEPS_SESSION):
                await self._kept.drop()
            raise

    async def close(self) -> None:
        await self._kept.close()

    async def _written(self, raw: Any, batch: Sequence[WaitingLease], uses: LastUses) -> Written:
        waiting = awaited(batch, self._clock.now())
        numbers = await self._write_at_once(raw, by_tenant(waiting), uses)
        if numbers is not None:
            return Written(numbers, frozenset())
        self._ends.clear()
        async with raw.transaction(isolation="read_committed"):  # so that the rows are read after the locks
            await self._require_authority(raw)
            return await self._write_with_care(raw, waiting, uses)

    async def _write_at_once(
        self, raw: Any, tenants: Sequence[tuple[Tenant, dict[int, LeaseRecord]]], uses: LastUses
    ) -> dict[int, int] | None:
        """The leases' numbers. None when nothing was written: something isn't as it was, or needs care."""
        calls: list[tuple[TreeEnd, list[Any]]] = []
        numbers: dict[int, int] = {}
        for tenant, records in tenants:
            end = self._ends.get(tenant) or await self._end(raw, _END, tenant)
            call = _call(self._ring, end, [*records.values()])
            if call is None:
                return None
            calls.append(call)
            numbers |= numbered(records, end.size)
        if len(calls) == 1 and not uses:
            written = await self._record(raw, calls[0][1])
        else:
            written = await self._record_each(raw, [arguments for _, arguments in calls], uses)
        if not written:
            return None
        for after, _ in calls:
            self._ends[after.tenant] = after
        return numbers

    async def _write_with_care(self, raw: Any, waiting: Mapping[int, LeaseRecord], uses: LastUses) -> Written:
        """Write the leases of which nothing has changed or is being changed, inside a transaction."""
        records = waiting.values()
        named = sorted(set[str]().union(*(record.facts.named for record in records)))
        locked = {row[0] for row in await raw.fetch(_LOCKS, named)}
        connection_ids = sorted({record.facts.connection_id for record in records})
        connections = {
            row[0]: tuple(row)[:4]
            for row in await raw.fetch(_CONNECTIONS, connection_ids)
            if row[4] in LEASABLE
        }
        apps = {row[0]: tuple(row) for row in await raw.fetch(_APPS, sorted(app_ids(records)))}
        delegations = await rows_postgresql(raw, delegated_uses(records))
        busy = frozenset(place for place, record in waiting.items() if not record.facts.named <= locked)
        good = {
            place: record
            for place, record in waiting.items()
            if place not in busy and is_unchanged(record, connections, apps, delegations)
        }
        numbers: dict[int, int] = {}
        for tenant, kept in by_tenant(good):
            end = await self._end(raw, _LOCKED_END, tenant)
            await raw.execute(_RECORDS, *_appended(self._ring, end, [*kept.values()]))
            numbers |= numbered(kept, end.size)
        if good:
            generations = newest_generations(good.values())
            await raw.execute(_USAGE, *zip(*generations, strict=True), list(generations.values()))
        await write_uses_postgresql(raw, uses)
        return Written(numbers, busy)

    async def _record(self, raw: Any, arguments: Sequence[Any]) -> bool:
        """A tenant's leases in one round trip. Raises Failure REGION_FENCED."""
        if self._region is None:
            return await raw.fetchval(_RECORD, *arguments)
        began = seconds_since_boot()
        remaining, written = await raw.fetchrow(_RECORD_BY_AUTHORITY, *arguments, self._region) or (0, False)
        self._note_authority(began, remaining)
        return bool(written)

    async def _record_each(self, raw: Any, calls: Sequence[Sequence[Any]], uses: LastUses) -> bool:
        """All of it in one transaction, or nothing: False. Raises Failure REGION_FENCED."""
        transaction = raw.transaction(isolation="read_committed")
        await transaction.start()
        try:
            await self._require_authority(raw)
        except Failure:
            await transaction.rollback()
            raise
        for arguments in calls:
            if not await raw.fetchval(_RECORD, *arguments):
                await transaction.rollback()
                return False
        await write_uses_postgresql(raw, uses)
        await transaction.commit()
        return True

    async def _require_authority(self, raw: Any) -> None:
        """Raises Failure REGION_FENCED."""
        if self._region is not None:
            began = seconds_since_boot()
            self._note_authority(began, await raw.fetchval(_REMAINING, self._region) or 0)

    def _note_authority(self, began: float, remaining_s: float) -> None:
        """`remaining_s` was read after `began`."""
        if remaining_s <= 0:
            raise _fenced()
        self._lease_until = began + remaining_s

    async def _end(self, raw: Any, query: str, tenant: Tenant) -> TreeEnd:
        """Raises TreeMissing, and Failure AUTHORITY_BROKEN: no token leaves behind records that were cut or
        rewritten."""
        row = await raw.fetchrow(query, tenant, self._shard)
        if row is None:
            raise TreeMissing(tenant)
        end = TreeEnd(tenant, self._shard, *row)
        if not end.is_authentic(self._ring):
            raise end.broken
        return end


def _fenced() -> Failure:
    why = "Not leased: this region has no authority, or hasn't renewed it in time."
    return Failure(ErrorCode.REGION_FENCED, why, retry_after=_RETRY_AFTER_S)


def _call(ring: KeyRing, end: TreeEnd, records: Sequence[LeaseRecord]) -> tuple[TreeEnd, list[Any]] | None:
    """The new end of the tree, and the arguments of `record_leases`.

    None when that can't judge them: a lease by delegation, or two of one row by two of its revisions.
    """
    connections, apps = dict[str, tuple[Any, ...]](), dict[str, tuple[Any, ...]]()
    named: set[str] = set()
    for record in records:
        facts = record.facts
        if (
            facts.delegated is not None
            or connections.setdefault(facts.connection_id, facts.connection) != facts.connection
            or apps.setdefault(facts.app_id, facts.app) != facts.app
        ):
            return None
        named |= facts.named
    leaves = [record.leaf for record in records]
    after = end.appended(ring, leaves)
    ids, _, revisions, generations = zip(*connections.values(), strict=True)
    app_ids, _, app_revisions, _ = zip(*apps.values(), strict=True)
    of_end = (end.tenant, end.shard, end.size, end.peaks, end.mac, after.peaks, after.mac)
    judged_by = (sorted(named), ids, revisions, generations, app_ids, app_revisions)
    arguments = [*of_end, *judged_by, *_texts(records), b"".join(leaves)]
    for place in _AS_TEXT:
        arguments[place - 1] = _SEPARATOR.join(arguments[place - 1])
    return after, arguments


def _appended(ring: KeyRing, end: TreeEnd, records: Sequence[LeaseRecord]) -> list[Any]:
    """The arguments of `_RECORDS`."""
    leaves = [record.leaf for record in records]
    after = end.appended(ring, leaves)
    moved = (end.tenant, end.shard, after.size, after.peaks, after.mac)
    return [*moved, list(range(end.size, after.size)), *_texts(records), leaves]


def _texts(records: Sequence[LeaseRecord]) -> list[list[Any]]:
    """What the rows of the records say, column by column: at, action, object, body."""
    columns = [
        (record.at, facts.action, facts.connection_id, record.body)
        for record in records
        for facts in (record.facts,)
    ]
    return [list(column) for column in zip(*columns, strict=True)]
