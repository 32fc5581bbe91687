"""The tables of apps, their keys and permits, and of stored responses."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from evergrant_server.crypto import Sealed
from evergrant_server.store.database.columns import (
    Row,
    app_foreign_key,
    json_column,
    optional_json_column,
    optional_timestamp_column,
    sealed_column,
    timestamp_column,
)


class AppRow(Row, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    disabled: bool
    return_to: list[str] = json_column()
    created_at: datetime = timestamp_column()
    revision: int


class AppKeyRow(Row, table=True):
    __table_args__ = (app_foreign_key(), Index(None, "id", unique=True), Index(None, "tenant", "app_id"))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    app_id: str
    secret_hash: str
    created_at: datetime = timestamp_column()
    revoked_at: datetime | None = optional_timestamp_column()
    revision: int


class PermitRow(Row, table=True):
    __table_args__ = (app_foreign_key(), UniqueConstraint("tenant", "app_id", "name"))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    app_id: str
    name: str
    integration: str
    subjects: list[str] = json_column()
    scope_ceiling: list[str] | None = optional_json_column()
    actions: list[str] = json_column()
    created_at: datetime = timestamp_column()
    revision: int


class IdempotencyRow(Row, table=True):
    __table_args__ = (Index(None, "stored_at"),)
    tenant: str = Field(primary_key=True)
    app_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_hash: str
    status: int
    sealed_body: Sealed = sealed_column()
    stored_at: datetime = timestamp_column()
    revision: int
