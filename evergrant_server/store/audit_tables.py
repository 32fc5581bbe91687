"""The tables of the audit log: its records, and the end of each shard's hash chain."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field

from evergrant_server.store.database import columns


class AuditRow(columns.TenantTable, table=True):
    __table_args__ = (Index(None, "tenant", "object", "at"), Index(None, "tenant", "at"))
    shard: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    at: datetime = columns.timestamp()
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


class AuditShardRow(columns.TenantTable, table=True):
    shard: str = Field(primary_key=True)
    count: int = Field(sa_type=BigInteger)
    last_hash: str
    mac: str | None = None
