"""The tables of the audit log: its records, and the end of each shard's hash chain."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field

from evergrant_server.store.database.columns import (
    Row,
    timestamp_column,
)


class AuditRow(Row, table=True):
    __table_args__ = (Index(None, "tenant", "object", "at"), Index(None, "tenant", "at"))
    tenant: str = Field(primary_key=True)
    shard: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    at: datetime = timestamp_column()
    action: str
    object: str
    by: str
    trace_id: str
    detail: str = Field(sa_type=Text)  # canonical JSON, as it was hashed
    workflow_id: str | None = None
    run_id: str | None = None
    event_id: int | None = None
    previous_hash: str
    hash: str
    revision: int


class AuditShardRow(Row, table=True):
    tenant: str = Field(primary_key=True)
    shard: str = Field(primary_key=True)
    count: int = Field(sa_type=BigInteger)
    last_hash: str
    revision: int
