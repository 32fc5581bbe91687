"""Reads the audit log: pages of records, the newest of an object, the last backup drills; records denies."""

import base64
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Select,
    String,
    Subquery,
    Tuple,
    func,
    literal,
    literal_column,
    select,
    text,
    tuple_,
    union_all,
)
from sqlmodel import col

from evergrant_server.audit.appending import append
from evergrant_server.audit.bodies import canonical_json, record_of
from evergrant_server.audit.filing import records_about
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry, AuditRecord
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import (
    ACCESS_CONDITION,
    NO_LEASE_CONDITION,
    AuditRow,
    AuditShardRow,
    AuditTreeRow,
)
from evergrant_server.store.database.columns import UtcDateTime, table_of
from evergrant_server.store.database.rows import columns_equal, fetch_all

DRILL = "backup"  # the object of the records of backup drills, which are the installation's
_EVER = datetime(2000, 1, 1, tzinfo=UTC)
_MOST_NEWEST = 20
_NO_LEASE: ColumnElement[bool] = literal_column(NO_LEASE_CONDITION, Boolean())


class Window(NamedTuple):
    """Which records: from `since` on, before `until`; `access_only`: those about who may do what; `actions`:
    those of these actions."""

    since: datetime | None = None
    until: datetime | None = None
    access_only: bool = False
    actions: tuple[AuditAction, ...] = ()

    def narrow(self, query: Select[Any]) -> Select[Any]:
        if self.since is not None:
            query = query.where(col(AuditRow.at) >= self.since)
        if self.until is not None:
            query = query.where(col(AuditRow.at) < self.until)
        if (named := self.is_of_actions) is not None:
            query = query.where(named)
        return query.where(text(ACCESS_CONDITION)) if self.access_only else query

    @property
    def is_of_actions(self) -> ColumnElement[bool] | None:
        """True for records of its actions; None: of every action."""
        named = [action.value for action in self.actions]
        return col(AuditRow.action).in_(named) if named else None


ALL = Window()


class StoredRecord(NamedTuple):
    """A record with its body, the text that its hash covers; None where it was erased."""

    record: AuditRecord
    body: str | None

    @property
    def place(self) -> str:
        """`<shard>/<number>`, as receipts name it."""
        return f"{self.record.shard}/{self.record.seq}"


def shard_ends() -> Subquery:
    """The columns tenant, shard, first and last, the numbers of its first and last record, of every shard
    that has a record.

    Within a shard records are committed in the order of their numbers, without a gap: a reader who has seen
    one has seen all before it.
    """
    chain, tree = AuditShardRow, AuditTreeRow
    of_chains = select(
        col(chain.tenant), col(chain.shard), literal(1).label("first"), col(chain.count).label("last")
    ).where(col(chain.count) > 0)
    of_trees = select(col(tree.tenant), col(tree.shard), literal(0), col(tree.size) - 1)
    return union_all(of_chains, of_trees.where(col(tree.size) > 0)).subquery()


async def following(
    tx: Transaction, tenant: Tenant, shard: str, after: int, limit: int
) -> list[StoredRecord]:
    """The next records of a shard behind the number `after`, by their numbers; -1: from the first on.

    Raises nothing for a number beyond the end: there is no record.
    """
    rest = columns_equal(AuditRow, tenant=tenant, shard=shard) & (col(AuditRow.seq) > after)
    query = select(AuditRow).where(rest).order_by(col(AuditRow.seq)).limit(limit)
    return [StoredRecord(record_of(row), row["body"]) for row in await fetch_all(tx.connection, query)]


async def page(
    tx: Transaction,
    tenant: Tenant,
    *,
    window: Window = ALL,
    object: str | None = None,
    after: str | None = None,
    limit: int = 50,
    newest_first: bool = False,
) -> list[AuditRecord]:
    """Records of every shard, oldest first (by moment, shard, number), after the cursor `after`.

    Cursors come from `page_cursor`. Raises Failure INVALID_REQUEST for any other.
    """
    if object is not None and not window.access_only:
        start = None if after is None else _place_after(after)
        bounds = {"since": window.since, "until": window.until, "after": start}
        bounds["where"] = window.is_of_actions
        rows = await records_about(
            tx, [*table_of(AuditRow).c], tenant, object, limit=limit, newest_first=newest_first, **bounds
        )
        return [record_of(row) for row in rows]
    order = (col(AuditRow.at), col(AuditRow.shard), col(AuditRow.seq))
    query = window.narrow(select(AuditRow).where(columns_equal(AuditRow, tenant=tenant)))
    if object is not None:
        query = query.where(col(AuditRow.object) == object, _NO_LEASE)
    if after is not None:
        place, start = tuple_(*order), _after(after)
        query = query.where(place < start if newest_first else place > start)
    sorting = [column.desc() for column in order] if newest_first else order
    return [record_of(row) for row in await fetch_all(tx.connection, query.order_by(*sorting).limit(limit))]


async def shard_after(tx: Transaction, tenant: Tenant, shard: str | None) -> str | None:
    """The tenant's next shard that has records, by name, behind `shard`; None: there is no other."""
    ends = shard_ends()
    names = select(ends.c.shard).where(ends.c.tenant == tenant)
    if shard is not None:
        names = names.where(ends.c.shard > shard)
    rows = await fetch_all(tx.connection, names.order_by(ends.c.shard).limit(1))
    return rows[0]["shard"] if rows else None


async def newest_record(
    tx: Transaction, tenant: Tenant, object: str, action: AuditAction
) -> AuditRecord | None:
    """The last record of this action, which is no lease's, about an object, or None."""
    mine = columns_equal(AuditRow, tenant=tenant, object=object, action=action.value) & _NO_LEASE
    rows = await fetch_all(
        tx.connection, select(AuditRow).where(mine).order_by(col(AuditRow.at).desc()).limit(1)
    )
    return record_of(rows[0]) if rows else None


async def record_before(tx: Transaction, record: AuditRecord) -> AuditRecord | None:
    """The last record of the same action, which is no lease's, about the same object before this one, or
    None."""
    mine = columns_equal(AuditRow, tenant=record.tenant, object=record.object, action=record.action.value)
    mine &= _NO_LEASE
    order = (col(AuditRow.at), col(AuditRow.shard), col(AuditRow.seq))
    mine &= tuple_(*order) < _after(page_cursor(record))
    query = select(AuditRow).where(mine).order_by(*(column.desc() for column in order)).limit(1)
    rows = await fetch_all(tx.connection, query)
    return record_of(rows[0]) if rows else None


async def newest_records(
    tx: Transaction, tenant: Tenant, object: str, actions: Iterable[AuditAction], since: datetime
) -> list[AuditRecord]:
    """The last twenty records of these actions, which are no leases', about an object, the newest first."""
    condition = columns_equal(AuditRow, tenant=tenant, object=object) & _NO_LEASE
    condition &= (col(AuditRow.at) >= since) & col(AuditRow.action).in_([action.value for action in actions])
    order = (col(AuditRow.at).desc(), col(AuditRow.shard), col(AuditRow.seq).desc())
    query = select(AuditRow).where(condition).order_by(*order).limit(_MOST_NEWEST)
    return [record_of(row) for row in await fetch_all(tx.connection, query)]


async def newest_of_tenant(
    tx: Transaction, tenant: Tenant, actions: Iterable[AuditAction], *, among: int
) -> list[AuditRecord]:
    """Records of these actions among the tenant's last `among` records, the newest first."""
    order = (col(AuditRow.at).desc(), col(AuditRow.shard), col(AuditRow.seq).desc())
    mine = select(AuditRow).where(columns_equal(AuditRow, tenant=tenant)).order_by(*order).limit(among)
    wanted = {action.value for action in actions}
    return [record_of(row) for row in await fetch_all(tx.connection, mine) if row["action"] in wanted]


async def count_actions(tx: Transaction, tenant: Tenant, window: Window) -> dict[str, int]:
    """How many records of each action there are."""
    mine = columns_equal(AuditRow, tenant=tenant)
    actions = window.narrow(select(table_of(AuditRow).c.action).where(mine)).subquery().c.action
    rows = await fetch_all(tx.connection, select(actions, func.count().label("number")).group_by(actions))
    return {row["action"]: int(row["number"]) for row in rows}


class ShardPlace(NamedTuple):
    """Where the records of a shard end: those with a lower number than `end` are there."""

    tenant: Tenant
    shard: str
    end: int


async def tree_ends(tx: Transaction) -> list[ShardPlace]:
    """The end of every shard of every tenant, without the installation's own. Chains of before have none."""
    tree = table_of(AuditTreeRow).c
    query = select(tree.tenant, tree.shard, tree.size).where(tree.tenant != INSTALLATION)
    rows = await tx.connection.execute(query)
    return [ShardPlace(Tenant(tenant), name, size) for tenant, name, size in rows]


def page_cursor(record: AuditRecord) -> str:
    """The opaque cursor of the page that begins after this record."""
    position = [record.at.isoformat(), record.shard, record.seq]
    return base64.urlsafe_b64encode(canonical_json(position).encode()).decode().rstrip("=")


def _after(cursor: str) -> Tuple:
    return tuple_(*_place_after(cursor), types=[UtcDateTime(), String(), BigInteger()])


def _place_after(cursor: str) -> tuple[datetime, str, int]:
    try:
        at, shard, seq = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        position = datetime.fromisoformat(at), shard, seq
    except (ValueError, TypeError):
        position = None
    if position is None or position[0].tzinfo is None or type(shard) is not str or type(seq) is not int:
        raise Failure(ErrorCode.INVALID_REQUEST, "The cursor is not one of ours.", field="after")
    return position


async def record_denies(
    tx: Transaction, tenant: Tenant, app_id: AppId, context: RequestContext, at: datetime
) -> None:
    """Record the app's denies if they have changed: right after the permit, before the app is read again."""
    denies = list(await tx.access.named_denies(tenant, app_id))
    last = await newest_record(tx, tenant, app_id, AuditAction.DENIES_CHANGED)
    if denies != ([] if last is None else last.detail["denies"]):
        detail = {"denies": denies}
        action = AuditAction.DENIES_CHANGED
        entry = AuditEntry(tenant=tenant, at=at, action=action, object=app_id, context=context, detail=detail)
        await append(tx, entry)


class Drills(NamedTuple):
    """When the last drill was, whether it found nothing wrong, and when one last did; None: never."""

    last_at: datetime | None
    last_ok: bool
    good_at: datetime | None


async def newest_drills(tx: Transaction) -> Drills:
    """As the last twenty records have it."""
    records = await newest_records(tx, INSTALLATION, DRILL, [AuditAction.BACKUP_DRILLED], _EVER)
    if not records:
        return Drills(None, False, None)
    good = next((record.at for record in records if record.detail.get("ok") is True), None)
    return Drills(records[0].at, records[0].detail.get("ok") is True, good)
