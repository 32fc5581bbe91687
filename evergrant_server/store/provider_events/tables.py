"""The tables of receivers, of what came in there, of what connections are known by, and of introspection."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database import columns


class EventReceiverRow(columns.IdRow, table=True):
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "integration_id"], ["integration.tenant", "integration.id"], ondelete="CASCADE"
        ),
        UniqueConstraint("tenant", "integration_id"),
        Index(None, "id", unique=True),
    )
    integration_id: str
    kind: str
    issuer: str | None = None
    jwks_uri: str | None = None
    audience: list[str] = columns.json()
    account_in: str
    keys: list[dict[str, Any]] | None = columns.optional_json()
    keys_at: datetime | None = columns.optional_timestamp()
    keys_requested_at: datetime | None = columns.optional_timestamp()
    keys_problem: str | None = None
    sealed_secret: Sealed | None = columns.sealed()
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()


class ReceivedEventRow(columns.TenantRow, table=True):
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "receiver_id"], ["event_receiver.tenant", "event_receiver.id"], ondelete="CASCADE"
        ),
        Index(None, "received_at"),
    )
    receiver_id: str = Field(primary_key=True)
    event_hash: str = Field(primary_key=True)
    received_at: datetime = columns.timestamp()


class AccountIdentifierRow(columns.TenantRow, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        Index(None, "tenant", "integration_id", "identifier_hash"),
    )
    connection_id: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    integration_id: str
    identifier_hash: str


class IntrospectionRow(columns.TenantRow, table=True):
    __table_args__ = (columns.connection_foreign_key(), Index(None, "next_at"))
    connection_id: str = Field(primary_key=True)
    next_at: datetime = columns.timestamp()
    checked_at: datetime | None = columns.optional_timestamp()
    outcome: str
