"""Writes batches of leases to PostgreSQL, on a connection of the ledger's own.

The function `record_leases` (migrations/versions/0001) writes a tenant's leases in one round trip, behind the
end of the chain that is remembered. It writes nothing when something isn't as it was: then the batch is
written with care, statement by statement, which finds out what that is.

A change of what a lease names waits for the batch: it commits before or after the lease is in the log, never
in between (the other side is the trigger `exclude_leases`). The batch waits for no change: a lease whose row
is being changed is judged with a later batch, and those beside it don't wait.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from evergrant_server.audit.hash_chain import ChainHead
from evergrant_server.audit.lease_batch import (
    APPS,
    CONNECTIONS,
    HEAD,
    LEASABLE,
    RAISED_USAGE,
    ChainMissing,
    LastUses,
    WaitingLease,
    Written,
    app_ids,
    awaited,
    by_tenant,
    delegated_uses,
    is_unchanged,
    newest_generations,
    write_uses_postgresql,
)
from evergrant_server.audit.lease_record import LeaseRecord, rows_postgresql
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.store.database.engine import KeptPostgres
from evergrant_server.store.database.errors import translate_errors

_MOST_REMEMBERED = 20_000  # ends of chains
# The driver looks ten times at every element of a list, so arrays without an empty element go as one text.
_AS_TEXT = (
    7,
    8,
    11,
    14,
    15,
    16,
    18,
    19,
)  # locks, connections, apps, actions, objects, callers, details, hashes
_SEPARATOR = "\x1f"  # in no id, name or hash, and JSON escapes it
_RECORD = "SELECT record_leases({})".format(
    ", ".join(
        f"string_to_array(${place}, E'\\x1f')" if place in _AS_TEXT else f"${place}" for place in range(1, 20)
    )
)
_LOCKS = (
    "SELECT id FROM unnest($1::varchar[]) AS id"
    " WHERE pg_try_advisory_xact_lock_shared(hashtextextended(id, 0))"
)
_CONNECTIONS = CONNECTIONS + "= ANY($1::varchar[])"
_APPS = APPS.format("unnest($1::varchar[]) AS named(id)")
_HEAD = HEAD.format("$1", "$2")
_LOCKED_HEAD = _HEAD + " FOR UPDATE"
_TYPES = {
    "seq": "bigint", "at": "timestamptz", "action": "varchar", "object": "varchar", "by": "varchar",
    "trace_id": "varchar", "detail": "text", "previous_hash": "varchar", "hash": "varchar",
}  # fmt: skip
_RECORDS = (
    f"WITH moved AS (UPDATE audit_shard SET count = $3, last_hash = $4, mac = $5, revision = revision + 1"
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
    def __init__(self, kept: KeptPostgres, shard: str, ring: KeyRing, clock: Clock) -> None:
        self._kept, self._shard, self._ring, self._clock = kept, shard, ring, clock
        self._heads: Bounded[str, ChainHead] = Bounded(_MOST_REMEMBERED)  # authentic ones, by tenant

    async def write(self, batch: Sequence[WaitingLease], uses: LastUses) -> Written:
        """Commit what still holds and isn't being changed. Raises ChainMissing and Failure.

        No caller may have its lease then, though it may be in the log: a commit's answer can be lost.
        """
        try:
            with translate_errors():
                return await self._written(await self._kept.driver(), batch, uses)
        except ChainMissing:
            await self._kept.close()  # the chain is begun by a connection of the pool
            raise
        except BaseException as error:
            self._heads.clear()
            if not (isinstance(error, Failure) and error.code is ErrorCode.AUTHORITY_BROKEN):
                await self._kept.drop()
            raise

    async def close(self) -> None:
        await self._kept.close()

    async def _written(self, raw: Any, batch: Sequence[WaitingLease], uses: LastUses) -> Written:
        waiting = awaited(batch, self._clock.now())
        if await self._write_at_once(raw, by_tenant(waiting.values()), uses):
            return Written(frozenset(waiting), frozenset())
        self._heads.clear()
        async with raw.transaction(isolation="read_committed"):  # so that the rows are read after the locks
            return await self._write_with_care(raw, waiting, uses)

    async def _write_at_once(
        self, raw: Any, tenants: Sequence[tuple[Tenant, list[LeaseRecord]]], uses: LastUses
    ) -> bool:
        """False when nothing was written, because something isn't as it was or needs care."""
        calls: list[tuple[ChainHead, list[Any]]] = []
        for tenant, records in tenants:
            call = _call(self._ring, self._heads.get(tenant) or await self._head(raw, _HEAD, tenant), records)
            if call is None:
                return False
            calls.append(call)
        if len(calls) == 1 and not uses:
            written: bool = await raw.fetchval(_RECORD, *calls[0][1])
        else:
            written = await _call_each(raw, [arguments for _, arguments in calls], uses)
        if written:
            for end, _ in calls:
                self._heads[end.tenant] = end
        return written

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
        for tenant, kept in by_tenant(good.values()):
            head = await self._head(raw, _LOCKED_HEAD, tenant)
            await raw.execute(_RECORDS, *_appended(self._ring, head, kept))
        if good:
            generations = newest_generations(good.values())
            await raw.execute(_USAGE, *zip(*generations, strict=True), list(generations.values()))
        await write_uses_postgresql(raw, uses)
        return Written(frozenset(good), busy)

    async def _head(self, raw: Any, query: str, tenant: Tenant) -> ChainHead:
        """Raises ChainMissing, and Failure AUTHORITY_BROKEN: no token leaves behind records that were cut or
        rewritten."""
        row = await raw.fetchrow(query, tenant, self._shard)
        if row is None:
            raise ChainMissing(tenant)
        head = ChainHead(tenant, self._shard, *row)
        if not head.is_authentic(self._ring):
            raise head.broken
        return head


async def _call_each(raw: Any, calls: Sequence[Sequence[Any]], uses: LastUses) -> bool:
    """All of it in one transaction, or nothing: False."""
    transaction = raw.transaction(isolation="read_committed")
    await transaction.start()
    for arguments in calls:
        if not await raw.fetchval(_RECORD, *arguments):
            await transaction.rollback()
            return False
    await write_uses_postgresql(raw, uses)
    await transaction.commit()
    return True


def _call(
    ring: KeyRing, head: ChainHead, records: Sequence[LeaseRecord]
) -> tuple[ChainHead, list[Any]] | None:
    """The new end of the chain, and the arguments of `record_leases`.

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
    hashes = _hashes(head, records)
    end = head.moved(ring, head.count + len(records), hashes[-1], authentic=True)
    ids, _, revisions, generations = zip(*connections.values(), strict=True)
    app_ids, _, app_revisions, _ = zip(*apps.values(), strict=True)
    of_head = (head.tenant, head.shard, head.count, head.last_hash, head.mac, end.mac)
    judged_by = (sorted(named), ids, revisions, generations, app_ids, app_revisions)
    arguments = [*of_head, *judged_by, *_texts(records), hashes]
    for place in _AS_TEXT:
        arguments[place - 1] = _SEPARATOR.join(arguments[place - 1])
    return end, arguments


def _appended(ring: KeyRing, head: ChainHead, records: Sequence[LeaseRecord]) -> list[Any]:
    """The arguments of `_RECORDS`."""
    hashes = _hashes(head, records)
    end = head.moved(ring, head.count + len(records), hashes[-1], authentic=True)
    numbers = list(range(head.count + 1, end.count + 1))
    previous = [head.last_hash, *hashes[:-1]]
    return [
        end.tenant,
        end.shard,
        end.count,
        end.last_hash,
        end.mac,
        numbers,
        *_texts(records),
        previous,
        hashes,
    ]


def _hashes(head: ChainHead, records: Sequence[LeaseRecord]) -> list[str]:
    hashes: list[str] = []
    previous = head.last_hash
    for seq, record in enumerate(records, head.count + 1):
        previous = record.hash_behind(previous, seq)
        hashes.append(previous)
    return hashes


def _texts(records: Sequence[LeaseRecord]) -> list[list[Any]]:
    """What the records say, column by column: at, action, object, by, trace_id, detail."""
    columns = [
        (record.at, facts.action, facts.connection_id, facts.by, record.trace_id, facts.detail)
        for record in records
        for facts in (record.facts,)
    ]
    return [list(column) for column in zip(*columns, strict=True)]
