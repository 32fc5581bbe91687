"""What streams have still to send: a cursor for each stream and shard, which is exact.

A shard's records are committed in the order of their numbers, so that all behind the cursor is what a stream
has still to send. Shards that begin later are found by their ends. Shards take turns: the one that was served
longest ago is first.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, Subquery, and_, func, literal, select, update
from sqlmodel import col

from evergrant_server.audit.appending import heads_shard
from evergrant_server.audit.records import StoredRecord, following, shard_ends
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.audit_streams.state import StreamState
from evergrant_server.core.ids import StreamId, Tenant
from evergrant_server.crypto import Role
from evergrant_server.store import Transaction
from evergrant_server.store.audit_streams import (
    AuditStreamCursorRow,
    AuditStreamRow,
    AuditStreamStateRow,
    may_run,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, columns_equal, fetch_all

# the installation's shards of heads: anchors hand these on, in a form of their own
_HEADS = [heads_shard(role) for role in (Role.WORKER, Role.GATEWAY)]
_MOST_SHARDS = 50  # of a batch
_MOST_STREAMS = 100  # of a look
_MOST_BYTES = 1024 * 1024  # of a batch's bodies
_CURSOR, _STATE, _STREAM = (
    table_of(row).c for row in (AuditStreamCursorRow, AuditStreamStateRow, AuditStreamRow)
)


class Batch(NamedTuple):
    """The next records of a stream, those of one shard in their order.

    `ends` are the numbers behind which each shard goes on (by tenant and name), `unsent` is how many records
    wait, with these. `missing` counts records that were deleted by hand: the receiver sees the gap, and
    `audit verify` names it.
    """

    records: Sequence[StoredRecord]
    ends: Mapping[tuple[Tenant, str], int]
    unsent: int
    missing: int

    @property
    def oldest_at(self) -> datetime | None:
        return min((stored.record.at for stored in self.records), default=None)


async def due_streams(tx: Transaction, by: str, now: datetime, *, installation: bool) -> list[StreamState]:
    """The streams that have something to send, and that the process `by` may send; the one that was sent
    longest ago first. `installation`: that of the settings too."""
    ends = shard_ends()
    row = AuditStreamStateRow
    enabled = select(literal(1)).where(
        _STREAM.tenant == col(row.tenant), _STREAM.id == col(row.id), _STREAM.disabled.is_(False)
    )
    waits = _unsent(ends, _STATE.id).where(ends.c.tenant == _STATE.tenant).exists()
    due = select(row).where(may_run(by, now), enabled.exists(), waits)
    rows = await fetch_all(
        tx.connection, due.order_by(_STATE.sent_at.asc().nulls_first()).limit(_MOST_STREAMS)
    )
    if installation:
        of_all = select(row).where(may_run(by, now), _STATE.tenant == INSTALLATION)
        rows += await fetch_all(tx.connection, of_all.where(_unsent(ends, _STATE.id).exists()))
    return [StreamState.model_validate(values) for values in rows]


async def next_batch(tx: Transaction, state: StreamState) -> Batch | None:
    """The next records of a stream, as many as its state allows; None where nothing waits."""
    ends = shard_ends()
    unsent = _of_stream(_unsent(ends, state.id), ends, state)
    shards = await fetch_all(
        tx.connection, unsent.order_by(_CURSOR.moved_at.asc().nulls_first()).limit(_MOST_SHARDS)
    )
    if not shards:
        return None
    share = -(-state.batch // len(shards))  # rounded up
    records: list[StoredRecord] = []
    ends_of: dict[tuple[Tenant, str], int] = {}
    size = missing = 0
    for shard in shards:
        tenant, limit = Tenant(shard["tenant"]), min(share, state.batch - len(records))
        if limit <= 0 or size >= _MOST_BYTES:
            break
        rows = await following(tx, tenant, shard["shard"], shard["after"], limit)
        taken = _within(rows, _MOST_BYTES - size)
        records += taken
        size += sum(len(stored.body or "") for stored in taken)
        end = shard["last"] if len(rows) < limit else taken[-1].record.seq
        end = taken[-1].record.seq if len(taken) < len(rows) else end
        missing += end - shard["after"] - len(taken)
        ends_of[tenant, shard["shard"]] = end
    return Batch(records, ends_of, await backlog(tx, state), missing)


def _within(rows: Sequence[StoredRecord], room: int) -> Sequence[StoredRecord]:
    """The first rows whose bodies have room, and at least one."""
    for number, stored in enumerate(rows):
        room -= len(stored.body or "")
        if room <= 0:
            return rows[: number + 1]
    return rows


async def backlog(tx: Transaction, state: StreamState) -> int:
    """How many records a stream has still to send, counted by their numbers."""
    ends = shard_ends()
    shards = _of_stream(_unsent(ends, state.id), ends, state).subquery()
    numbers = select(func.sum(shards.c.last - shards.c.after))
    return int((await tx.connection.execute(numbers)).scalar() or 0)


async def advance(tx: Transaction, id: StreamId, ends: Mapping[tuple[Tenant, str], int]) -> None:
    """Move the cursors of a stream: behind the records with these numbers, by tenant and shard."""
    for (tenant, shard), seq in sorted(ends.items()):
        mine = columns_equal(AuditStreamCursorRow, tenant=tenant, stream_id=id, shard=shard)
        moved: Values = {"seq": seq, "moved_at": tx.now, "revision": _CURSOR.revision + 1}
        changed = await tx.connection.execute(update(AuditStreamCursorRow).where(mine).values(moved))
        if changed.rowcount == 0:
            key: Values = {"tenant": tenant, "stream_id": id, "shard": shard}
            await tx.connection.execute(
                table_of(AuditStreamCursorRow).insert(),
                {**key, "seq": seq, "moved_at": tx.now, "revision": 1},
            )


async def begin_at_end(tx: Transaction, state: StreamState) -> None:
    """Let a new stream begin behind all that is there."""
    ends = shard_ends()
    here = select(
        ends.c.tenant,
        literal(1),
        literal(state.id),
        ends.c.shard,
        ends.c.last,
        literal(tx.now, _CURSOR.moved_at.type),
    )
    if not state.is_of_installation:
        here = here.where(ends.c.tenant == state.tenant)
    names = ["tenant", "revision", "stream_id", "shard", "seq", "moved_at"]
    await tx.connection.execute(table_of(AuditStreamCursorRow).insert().from_select(names, here))


def _unsent(ends: Subquery, id: ColumnElement[str] | str) -> Select[Any, Any, Any, Any]:
    """The shards in which a stream has something to send: tenant, shard, `after`, `last`."""
    mine = and_(_CURSOR.tenant == ends.c.tenant, _CURSOR.shard == ends.c.shard, _CURSOR.stream_id == id)
    after = func.coalesce(_CURSOR.seq, ends.c.first - 1)
    joined = ends.outerjoin(table_of(AuditStreamCursorRow), mine)
    columns: tuple[ColumnElement[Any], ...] = (ends.c.tenant, ends.c.shard, after.label("after"), ends.c.last)
    query = select(*columns).select_from(joined)
    is_heads = and_(ends.c.tenant == INSTALLATION, ends.c.shard.in_(_HEADS))
    return query.where(ends.c.last > after, ~is_heads)


def _of_stream(
    query: Select[Any, Any, Any, Any], ends: Subquery, state: StreamState
) -> Select[Any, Any, Any, Any]:
    """Those shards that the stream covers: all, where it is the installation's."""
    return query if state.is_of_installation else query.where(ends.c.tenant == state.tenant)
