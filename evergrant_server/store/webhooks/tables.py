"""The tables of webhooks, of their events and of deliveries."""

from datetime import datetime

from sqlalchemy import JSON, Index, Text, UniqueConstraint, text
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database.columns import (
    Row,
    optional_timestamp_column,
    sealed_column,
    timestamp_column,
)


class WebhookRow(Row, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    name: str
    url: str
    events: list[str] = Field(sa_type=JSON)
    integration: str
    disabled_by: str | None = None
    failures: int
    failing_since: datetime | None = optional_timestamp_column()
    paused_until: datetime | None = optional_timestamp_column()
    sealed_secret: Sealed = sealed_column()
    sealed_previous_secret: Sealed | None = sealed_column()
    previous_secret_until: datetime | None = optional_timestamp_column()
    secret_changed_at: datetime = timestamp_column()
    created_at: datetime = timestamp_column()
    changed_at: datetime = timestamp_column()
    revision: int


class EventRow(Row, table=True):
    __table_args__ = (Index(None, "tenant", "at"),)
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    type: str
    connection_id: str | None = None
    at: datetime = timestamp_column()
    body: str = Field(sa_type=Text)  # as it is signed and sent
    revision: int


class DeliveryRow(Row, table=True):
    """No foreign key to the webhook: a commit of an event must not wait for a change of a webhook."""

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "event_id"], ["event.tenant", "event.id"]),
        Index(None, "tenant", "event_id"),
        Index(None, "tenant", "webhook_id", "created_at", "id"),
        Index(
            "ix_delivery_pending",
            "tenant",
            "webhook_id",
            "by_hand",
            "next_at",
            sqlite_where=text("status = 'pending'"),
            postgresql_where=text("status = 'pending'"),
        ),
    )
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    webhook_id: str
    event_id: str
    event_type: str
    status: str
    by_hand: bool
    attempts: int
    tries: int
    response_status: int | None = None
    problem: str | None = None
    next_at: datetime | None = optional_timestamp_column()
    created_at: datetime = timestamp_column()
    ended_at: datetime | None = optional_timestamp_column()
    revision: int
