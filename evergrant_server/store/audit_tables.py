"""The tables of the audit log: its records, and the end of each shard's hash chain."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field

from evergrant_server.store.database import columns

# the actions that say who may do what, by their first word
_ACCESS_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
)
ACCESS_CONDITION = "({})".format(" OR ".join(f"action LIKE '{word}.%'" for word in _ACCESS_WORDS))


class AuditRow(columns.TenantTable, table=True):
    __table_args__ = (
        Index(None, "tenant", "object", "at"),
        Index(None, "tenant", "at"),
        columns.partial_index("ix_audit_access", "tenant", "at", where=ACCESS_CONDITION),
    )
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
