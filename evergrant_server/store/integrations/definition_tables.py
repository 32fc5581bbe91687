"""The table of definitions that tenants bring."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from evergrant_server.store.columns import Row, json_column, timestamp_column


class DefinitionRow(Row, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name", "version"), Index(None, "id", unique=True))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    version: int
    document: dict[str, Any] = json_column()
    state: str
    share: float
    rollout: dict[str, Any] = json_column()
    findings: list[dict[str, Any]] = json_column()
    succeeded: int
    failed: int
    proposed_by: str
    decided_by: str | None = None
    approved: bool | None = None
    reason: str | None = None
    created_at: datetime = timestamp_column()
    changed_at: datetime = timestamp_column()
    revision: int
