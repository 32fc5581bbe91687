"""A record remembered outside the database: a database that lacks it came from an older backup."""

from sqlalchemy import select
from sqlmodel import col

from evergrant_server.core.messages.maintenance import AuditCheckpoint
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow
from evergrant_server.store.database.rows import fetch_first, find_one


async def newest_checkpoint(tx: Transaction) -> AuditCheckpoint | None:
    """The newest record of any tenant's main chain; None while there is none."""
    last = (
        (col(AuditRow.tenant) == col(AuditShardRow.tenant))
        & (col(AuditRow.shard) == col(AuditShardRow.shard))
        & (col(AuditRow.seq) == col(AuditShardRow.count))
    )
    query = (
        select(col(AuditRow.tenant), col(AuditRow.seq), col(AuditRow.hash))
        .join(AuditShardRow, last)
        .where(col(AuditShardRow.shard) == "main")
        .order_by(col(AuditRow.at).desc(), col(AuditRow.tenant))
        .limit(1)
    )
    row = await fetch_first(tx.connection, query)
    return None if row is None else AuditCheckpoint.model_validate(row)


async def contains_checkpoint(tx: Transaction, checkpoint: AuditCheckpoint) -> bool:
    """False when the record isn't there, or another one is in its place."""
    row = await find_one(tx.connection, AuditRow, tenant=checkpoint.tenant, shard="main", seq=checkpoint.seq)
    return row is not None and row["hash"] == checkpoint.hash
