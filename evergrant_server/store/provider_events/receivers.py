"""Receivers with their signing secrets and pinned keys, and what came in there."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, delete, or_
from sqlmodel import Field, ForeignKeyConstraint, col

from evergrant_server.core.ids import IntegrationId, ReceiverId, Tenant
from evergrant_server.core.provider_events import Receiver
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Sealed
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal, find_one, insert
from evergrant_server.store.sealing import IntakeRepository


class EventReceiverRow(columns.IdTable, table=True):
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
    keys: list[dict[str, Any]] | None = columns.json()
    keys_at: datetime | None = columns.timestamp()
    keys_requested_at: datetime | None = columns.timestamp()
    keys_problem: str | None = None
    sealed_secret: Sealed | None = columns.sealed()
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()


class ReceivedEventRow(columns.TenantTable, table=True):
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "receiver_id"], ["event_receiver.tenant", "event_receiver.id"], ondelete="CASCADE"
        ),
        Index(None, "received_at"),
    )
    receiver_id: str = Field(primary_key=True)
    event_hash: str = Field(primary_key=True)
    received_at: datetime = columns.timestamp()


_SECRET = "sealed_secret"


class Receivers(IntakeRepository[Receiver, ReceiverId]):
    _table, _model = EventReceiverRow, Receiver

    async def put(self, receiver: Receiver, secret: Secret | None, *, expected: int | None) -> Receiver:
        """Add (`expected` None) or change a receiver; `secret` None keeps the old one.

        Raises Failure ALREADY_EXISTS when adding, STORE_CONFLICT or NOT_FOUND when changing.
        """
        sealed = await self._sealed(receiver, {} if secret is None else {_SECRET: secret})
        return await self._put(receiver, "A receiver of this integration", expected, **sealed)

    async def find_in_any_tenant(self, id: ReceiverId) -> Receiver | None:
        """The receiver with this id in any tenant: a provider that calls it sends no more."""
        return await self._one(id=id)

    async def of_integration(self, tenant: Tenant, integration_id: IntegrationId) -> Receiver | None:
        return await self._one(tenant=tenant, integration_id=integration_id)

    async def secret(self, receiver: Receiver) -> Secret | None:
        """The signing secret, if there is one. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        return await self._opened(receiver, _SECRET)

    async def delete(self, receiver: Receiver) -> None:
        mine = columns_equal(EventReceiverRow, tenant=receiver.tenant, id=receiver.id)
        await self._run(delete(EventReceiverRow).where(mine))

    async def with_keys_older_than(self, before: datetime, limit: int = 500) -> list[Receiver]:
        """Receivers of every tenant whose keys were fetched before then, or never."""
        old = or_(col(EventReceiverRow.keys_at).is_(None), col(EventReceiverRow.keys_at) < before)
        query = self._where(old, col(EventReceiverRow.jwks_uri).is_not(None))
        return await self._page(query, "id", None, limit)

    async def is_known_event(self, receiver: Receiver, event_hash: str) -> bool:
        """True when this event came before."""
        key = {"tenant": receiver.tenant, "receiver_id": receiver.id, "event_hash": event_hash}
        return await find_one(self._connection, ReceivedEventRow, **key) is not None

    async def record_event(self, receiver: Receiver, event_hash: str, at: datetime) -> bool:
        """Remember that this event came; False when another process was faster."""
        key = {"tenant": receiver.tenant, "receiver_id": receiver.id, "event_hash": event_hash}
        return await insert(self._connection, ReceivedEventRow, {**key, "received_at": at, "revision": 1})

    async def delete_events_before(self, before: datetime) -> int:
        """Delete what came before then; says how many."""
        return await self._run(delete(ReceivedEventRow).where(col(ReceivedEventRow.received_at) < before))
