"""Records of leases by their objects: filed a moment later by a worker, in sorted pages; counts by the hour.

An index by object would cost a lease as much as all the rest of its record, because each entry goes to
another page of it. Other records are in such an index (`ix_audit_object`). A reader of an object's records
reads three places in one snapshot: the index, what is filed, and the tail of each tree that isn't filed yet.
Leases and refreshes are counted by the hour in the same transaction, each record once.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Select, func, literal_column, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_tables import (
    LEASE_ACTIONS,
    NO_LEASE_CONDITION,
    AuditFiledRow,
    AuditHourRow,
    AuditRow,
    AuditTreeRow,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, fetch_all, fetch_first

_AT_ONCE = 500  # records of a transaction
_RECORDS, _FILED, _TREES = table_of(AuditRow), table_of(AuditFiledRow), table_of(AuditTreeRow)
_HOURS = table_of(AuditHourRow)
_UNFILED: ColumnElement[bool] = literal_column("filed < size", Boolean())
_LEASES = _RECORDS.c.action.in_([action.value for action in LEASE_ACTIONS])
# what the overview shows by the hour
COUNTED_ACTIONS = (*LEASE_ACTIONS, AuditAction.GRANT_REFRESHED, AuditAction.REFRESH_FAILED)
_COUNTED = _RECORDS.c.action.in_([action.value for action in COUNTED_ACTIONS])
Order = tuple[ColumnElement[Any], ...]


async def file_leases(store: Store) -> None:
    """File all leases that are in the log. Raises Failure STORE_CONFLICT when another process does that."""
    waiting = (
        select(_TREES.c.tenant, _TREES.c.shard).where(_UNFILED).order_by(_TREES.c.tenant, _TREES.c.shard)
    )
    async with store.read() as tx:
        trees = await fetch_all(tx.connection, waiting)
    for tree in trees:
        is_behind = True
        while is_behind:
            async with store.write() as tx:
                is_behind = await _file_some(tx, tree["tenant"], tree["shard"])


async def _file_some(tx: Transaction, tenant: str, shard: str) -> bool:
    """File the next leases of a tree; whether there are more."""
    ours = (_TREES.c.tenant == tenant) & (_TREES.c.shard == shard)
    tree = await fetch_first(tx.connection, select(_TREES.c.filed, _TREES.c.size).where(ours))
    if tree is None or tree["filed"] >= tree["size"]:
        return False
    until = min(tree["size"], tree["filed"] + _AT_ONCE)
    names = ("tenant", "object", "at", "shard", "seq")
    query = select(*(_RECORDS.c[name] for name in (*names, "action"))).where(
        *(_RECORDS.c.tenant == tenant, _RECORDS.c.shard == shard, _COUNTED),
        *(_RECORDS.c.seq >= tree["filed"], _RECORDS.c.seq < until),
    )
    rows = await fetch_all(tx.connection, query)
    await _count(tx, tenant, rows)
    leases = [row for row in rows if row["action"] in LEASE_ACTIONS]
    if leases:
        leases.sort(key=lambda row: (row["object"], row["at"], row["seq"]))
        insert = sqlite.insert if tx.connection.dialect.name == "sqlite" else postgresql.insert
        filed: list[Values] = [{"revision": 1, **{name: row[name] for name in names}} for row in leases]
        await tx.connection.execute(insert(_FILED).on_conflict_do_nothing(), filed)
    moved = update(_TREES).where(ours, _TREES.c.filed == tree["filed"]).values(filed=until)
    if (await tx.connection.execute(moved)).rowcount != 1:
        raise Failure(
            ErrorCode.STORE_CONFLICT, f"the leases of {tenant}/{shard} are filed by another process"
        )
    return until < tree["size"]


async def _count(tx: Transaction, tenant: str, rows: Sequence[Values]) -> None:
    """Add these records to the counts of their hours."""
    hours = Counter((row["at"].replace(minute=0, second=0, microsecond=0), row["action"]) for row in rows)
    if not hours:
        return
    insert = sqlite.insert if tx.connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(_HOURS)
    added = statement.on_conflict_do_update(
        index_elements=["tenant", "hour", "action"],
        set_={"number": _HOURS.c.number + statement.excluded.number},
    )
    counts: list[Values] = [
        {"tenant": tenant, "hour": hour, "action": action, "number": number, "revision": 1}
        for (hour, action), number in sorted(hours.items())
    ]
    await tx.connection.execute(added, counts)


async def queries_about(
    tx: Transaction, columns: Sequence[ColumnElement[Any]], tenant: str, object: str
) -> list[tuple[Select[Any], Order]]:
    """The queries that together have all records about an object, and the columns that each is sorted by:
    moment, shard, number. For the order of a short tail no database may walk an index of all moments."""
    records, filed, trees = _RECORDS.c, _FILED.c, _TREES.c
    order = (records.at, records.shard, records.seq)
    of_object = (records.tenant == tenant) & (records.object == object)
    others = select(*columns).where(of_object, text(NO_LEASE_CONDITION))
    same = [records[name] == filed[name] for name in ("tenant", "shard", "seq")]
    leases = select(*columns).select_from(_FILED).join(_RECORDS, same[0] & same[1] & same[2])
    leases = leases.where(filed.tenant == tenant, filed.object == object)
    queries: list[tuple[Select[Any], Order]] = [
        (others, order),
        (leases, (filed.at, filed.shard, filed.seq)),
    ]
    unindexed = (func.coalesce(records.at, records.at), records.shard, records.seq)
    unfiled = select(trees.shard, trees.filed).where(trees.tenant == tenant, _UNFILED)
    for tree in await fetch_all(tx.connection, unfiled):
        tail = (records.shard == tree["shard"]) & (records.seq >= tree["filed"])
        queries.append((select(*columns).where(of_object, tail, _LEASES), unindexed))
    return queries


async def records_about(
    tx: Transaction,
    columns: Sequence[ColumnElement[Any]],
    tenant: str,
    object: str,
    *,
    limit: int,
    since: datetime | None = None,
    until: datetime | None = None,
    after: tuple[datetime, str, int] | None = None,
    newest_first: bool = False,
    where: ColumnElement[bool] | None = None,
) -> list[Values]:
    """Rows of the records about an object by moment, shard and number; `columns` has these."""
    rows: list[Values] = []
    for query, order in await queries_about(tx, columns, tenant, object):
        if since is not None:
            query = query.where(order[0] >= since)
        if until is not None:
            query = query.where(order[0] < until)
        if where is not None:
            query = query.where(where)
        if after is not None:
            place, start = tuple_(*order), tuple_(*after, types=[column.type for column in order])
            query = query.where(place < start if newest_first else place > start)
        sorting = [column.desc() for column in order] if newest_first else order
        rows += await fetch_all(tx.connection, query.order_by(*sorting).limit(limit))
    rows.sort(key=lambda row: (row["at"], row["shard"], row["seq"]), reverse=newest_first)
    return rows[:limit]
