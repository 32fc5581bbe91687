"""The tables of webhooks, of their events and of deliveries."""

from datetime import datetime

from sqlalchemy import JSON, Index, Text, UniqueConstraint
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.database import columns


class WebhookRow(columns.IdRow, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    name: str
    url: str
    events: list[str] = Field(sa_type=JSON)
    integration: str
    disabled_by: str | None = None
    failures: int
    failing_since: datetime | None = columns.optional_timestamp()
    paused_until: datetime | None = columns.optional_timestamp()
    sealed_secret: Sealed = columns.sealed()
    sealed_previous_secret: Sealed | None = columns.sealed()
    previous_secret_until: datetime | None = columns.optional_timestamp()
    secret_changed_at: datetime = columns.timestamp()
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()


class EventRow(columns.IdRow, table=True):
    __table_args__ = (Index(None, "tenant", "at"),)
    type: str
    connection_id: str | None = None
    at: datetime = columns.timestamp()
    body: str = Field(sa_type=Text)  # as it is signed and sent


class DeliveryRow(columns.IdRow, table=True):
    """No foreign key to the webhook: a commit of an event must not wait for a change of a webhook."""

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "event_id"], ["event.tenant", "event.id"]),
        Index(None, "tenant", "event_id"),
        Index(None, "tenant", "webhook_id", "created_at", "id"),
        columns.partial_index(
            "ix_delivery_pending", "tenant", "webhook_id", "by_hand", "next_at", where="status = 'pending'"
        ),
    )
    webhook_id: str
    event_id: str
    event_type: str
    status: str
    by_hand: bool
    attempts: int
    tries: int
    response_status: int | None = None
    problem: str | None = None
    next_at: datetime | None = columns.optional_timestamp()
    created_at: datetime = columns.timestamp()
    ended_at: datetime | None = columns.optional_timestamp()
