"""Receivers with their secrets and pinned keys, what came in there, and the schedule of introspections.

Doesn't own what an event means for a grant (core, audit).
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, Select, UniqueConstraint, and_, delete, exists, or_, select
from sqlmodel import Field, ForeignKeyConstraint, col

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.ids import ConnectionId, IntegrationId, ReceiverId, Tenant
from evergrant_server.core.provider_events import IntrospectionFinding, Receiver
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Sealed
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    ModelRepository,
    columns_equal,
    compare_and_set,
    find_one,
    insert,
)
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository


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
    sealed_secret: Sealed | None = columns.sealed(columns.BY_INTAKE)
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


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


class Receivers(IntakeRepository[Receiver, ReceiverId], AuthenticatedRepository[Receiver, ReceiverId]):
    _table, _model = EventReceiverRow, Receiver

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def put(self, receiver: Receiver, secret: Secret | None, *, expected: int | None) -> Receiver:
        """Add (`expected` None) or change a receiver; `secret` None keeps the old one.

        Raises Failure ALREADY_EXISTS when adding, STORE_CONFLICT or NOT_FOUND when changing.
        """
        sealed = await self._sealed(receiver, {} if secret is None else {_SECRET: secret})
        return await self._put(receiver, "A receiver of this integration", expected, **sealed)

    async def find_in_any_tenant(self, id: ReceiverId) -> Receiver | None:
        """The receiver with this id in any tenant: a provider that calls it sends no more. Raises Failure
        AUTHORITY_BROKEN."""
        return await self._one(id=id)

    async def of_integration(self, tenant: Tenant, integration_id: IntegrationId) -> Receiver | None:
        """The receiver as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant, integration_id=integration_id)

    async def secret(self, receiver: Receiver) -> Secret | None:
        """The signing secret, if there is one. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        return await self._opened(receiver, _SECRET)

    async def delete(self, receiver: Receiver) -> None:
        mine = columns_equal(EventReceiverRow, tenant=receiver.tenant, id=receiver.id)
        await self._run(delete(EventReceiverRow).where(mine))

    async def with_keys_older_than(self, before: datetime, limit: int = 500) -> list[Receiver]:
        """Receivers of every tenant whose keys were fetched before then, or never. Not checked."""
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


class IntrospectionRow(columns.TenantTable, table=True):
    __table_args__ = (columns.connection_foreign_key(), Index(None, "next_at"))
    connection_id: str = Field(primary_key=True)
    next_at: datetime = columns.timestamp()
    checked_at: datetime | None = columns.timestamp()
    outcome: str


NEVER_INTROSPECTED = "never"
_SAME = and_(
    col(IntrospectionRow.tenant) == col(ConnectionRow.tenant),
    col(IntrospectionRow.connection_id) == col(ConnectionRow.id),
)


class Introspections(ModelRepository[Connection, ConnectionId]):
    """Apart from the rows of connections: writing the schedule moves no revision."""

    _table, _model = ConnectionRow, Connection

    async def unscheduled(
        self, tenant: Tenant, integration_id: IntegrationId, limit: int
    ) -> list[Connection]:
        """Active connections of this integration that have no place in the order yet."""
        query = self._active(tenant, integration_id).where(col(IntrospectionRow.connection_id).is_(None))
        return await self._all(query.order_by(col(ConnectionRow.id)).limit(limit))

    async def due(
        self, tenant: Tenant, integration_id: IntegrationId, now: datetime, limit: int
    ) -> list[Connection]:
        """Active connections whose time has come, the longest overdue first."""
        query = self._active(tenant, integration_id).where(col(IntrospectionRow.next_at) <= now)
        order = (col(IntrospectionRow.next_at), col(ConnectionRow.id))
        return await self._all(query.order_by(*order).limit(limit))

    async def schedule(
        self,
        tenant: Tenant,
        connection_id: ConnectionId,
        next_at: datetime,
        *,
        outcome: str = NEVER_INTROSPECTED,
        checked_at: datetime | None = None,
    ) -> None:
        """Write the outcome and the time of the next one. Another worker's result is as good: no conflict."""
        key = {"tenant": tenant, "connection_id": connection_id}
        old = await find_one(self._connection, IntrospectionRow, **key)
        values = {**key, "next_at": next_at, "checked_at": checked_at, "outcome": outcome}
        if old is None:
            await insert(self._connection, IntrospectionRow, {**values, "revision": 1})
        else:
            await compare_and_set(self._connection, IntrospectionRow, key, values, old["revision"])

    async def provider_recognizes_tokens(self, tenant: Tenant, integration_id: IntegrationId) -> bool:
        """True when this provider has said of a refresh token that it is active: it knows of them."""
        mine = columns_equal(ConnectionRow, tenant=tenant, integration_id=integration_id)
        known = col(IntrospectionRow.outcome) == IntrospectionFinding.REFRESH_TOKEN_ACTIVE.value
        result = await self._connection.execute(select(exists().where(_SAME, mine, known)))
        return bool(result.scalar_one())

    def _active(self, tenant: Tenant, integration_id: IntegrationId) -> Select[Any]:
        active = self._where(tenant=tenant, integration_id=integration_id, state=LifecycleState.ACTIVE.value)
        return active.outerjoin(IntrospectionRow, _SAME)
