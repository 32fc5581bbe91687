"""The tables of webhooks, of the events they are told and of the deliveries on their way."""

from datetime import datetime

from sqlalchemy import JSON, Index, Text, UniqueConstraint, text
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.tables import Row
from evergrant_server.store.types import SealedBytes, UtcDateTime


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
    failing_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    paused_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    sealed_secret: Sealed = Field(sa_type=SealedBytes)
    sealed_previous_secret: Sealed | None = Field(default=None, sa_type=SealedBytes)
    previous_secret_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    secret_changed_at: datetime = Field(sa_type=UtcDateTime)
    created_at: datetime = Field(sa_type=UtcDateTime)
    changed_at: datetime = Field(sa_type=UtcDateTime)
    revision: int


class EventRow(Row, table=True):
    __table_args__ = (Index(None, "tenant", "at"),)
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    type: str
    connection_id: str | None = None
    at: datetime = Field(sa_type=UtcDateTime)
    body: str = Field(sa_type=Text)  # as it is signed and sent
    revision: int


class DeliveryRow(Row, table=True):
    """No foreign key to the webhook: whoever commits an event must not wait for who changes a webhook."""

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
    next_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = Field(sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revision: int
