"""The tables of apps, their keys and permits, and of stored responses."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database import columns


def app_foreign_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", "app_id"], ["app.tenant", "app.id"], ondelete="CASCADE")


class AppRow(columns.IdRow, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    name: str
    disabled: bool
    return_to: list[str] = columns.json()
    created_at: datetime = columns.timestamp()


class AppKeyRow(columns.IdRow, table=True):
    __table_args__ = (app_foreign_key(), Index(None, "id", unique=True), Index(None, "tenant", "app_id"))
    app_id: str
    secret_hash: str
    created_at: datetime = columns.timestamp()
    revoked_at: datetime | None = columns.optional_timestamp()


class PermitRow(columns.IdRow, table=True):
    __table_args__ = (app_foreign_key(), UniqueConstraint("tenant", "app_id", "name"))
    app_id: str
    name: str
    integration: str
    subjects: list[str] = columns.json()
    scope_ceiling: list[str] | None = columns.optional_json()
    actions: list[str] = columns.json()
    created_at: datetime = columns.timestamp()


class IdempotencyRow(columns.TenantRow, table=True):
    __table_args__ = (Index(None, "stored_at"),)
    app_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_hash: str
    status: int
    sealed_body: Sealed = columns.sealed()
    stored_at: datetime = columns.timestamp()
