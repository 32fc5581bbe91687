"""A record remembered outside the database: a database that lacks it came from an older backup."""

from sqlalchemy import select
from sqlmodel import col

from evergrant_server.core.upkeep import Mark
from evergrant_server.store.records import first, one
from evergrant_server.store.tables import AuditLaneRow, AuditRow
from evergrant_server.store.tx import Tx


async def newest_mark(tx: Tx) -> Mark | None:
    """The newest record of any tenant's main chain; None while there is none."""
    last = (
        (col(AuditRow.tenant) == col(AuditLaneRow.tenant))
        & (col(AuditRow.lane) == col(AuditLaneRow.lane))
        & (col(AuditRow.seq) == col(AuditLaneRow.count))
    )
    query = (
        select(col(AuditRow.tenant), col(AuditRow.seq), col(AuditRow.hash))
        .join(AuditLaneRow, last)
        .where(col(AuditLaneRow.lane) == "main")
        .order_by(col(AuditRow.at).desc(), col(AuditRow.tenant))
        .limit(1)
    )
    row = await first(tx.connection, query)
    return None if row is None else Mark.model_validate(row)


async def holds_mark(tx: Tx, mark: Mark) -> bool:
    """False when the record isn't there, or another one is in its place."""
    row = await one(tx.connection, AuditRow, tenant=mark.tenant, lane="main", seq=mark.seq)
    return row is not None and row["hash"] == mark.hash
