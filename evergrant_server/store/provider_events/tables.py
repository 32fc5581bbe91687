"""The tables of receivers, of what came in there, of what connections are known by, and of introspection."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database.columns import (
    Row,
    connection_foreign_key,
    json_column,
    optional_json_column,
    optional_timestamp_column,
    sealed_column,
    timestamp_column,
)


class EventReceiverRow(Row, table=True):
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "integration_id"], ["integration.tenant", "integration.id"], ondelete="CASCADE"
        ),
        UniqueConstraint("tenant", "integration_id"),
        Index(None, "id", unique=True),
    )
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    integration_id: str
    kind: str
    issuer: str | None = None
    jwks_uri: str | None = None
    audience: list[str] = json_column()
    account_in: str
    keys: list[dict[str, Any]] | None = optional_json_column()
    keys_at: datetime | None = optional_timestamp_column()
    keys_requested_at: datetime | None = optional_timestamp_column()
    keys_problem: str | None = None
    sealed_secret: Sealed | None = sealed_column()
    created_at: datetime = timestamp_column()
    changed_at: datetime = timestamp_column()
    revision: int


class ReceivedEventRow(Row, table=True):
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "receiver_id"], ["event_receiver.tenant", "event_receiver.id"], ondelete="CASCADE"
        ),
        Index(None, "received_at"),
    )
    tenant: str = Field(primary_key=True)
    receiver_id: str = Field(primary_key=True)
    event_hash: str = Field(primary_key=True)
    received_at: datetime = timestamp_column()
    revision: int


class AccountIdentifierRow(Row, table=True):
    __table_args__ = (connection_foreign_key(), Index(None, "tenant", "integration_id", "identifier_hash"))
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    integration_id: str
    identifier_hash: str
    revision: int


class IntrospectionRow(Row, table=True):
    __table_args__ = (connection_foreign_key(), Index(None, "next_at"))
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    next_at: datetime = timestamp_column()
    checked_at: datetime | None = optional_timestamp_column()
    outcome: str
    revision: int
