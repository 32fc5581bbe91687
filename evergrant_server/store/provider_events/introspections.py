"""The schedule of introspections, apart from the rows of connections: writing it moves no revision."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, Select, and_, exists, select
from sqlmodel import Field, col

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.provider_events import IntrospectionFinding
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import (
    ModelRepository,
    columns_equal,
    compare_and_set,
    find_one,
    insert,
)


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
        found = await self._connection.execute(select(exists().where(_SAME, mine, known)))
        return bool(found.scalar_one())

    def _active(self, tenant: Tenant, integration_id: IntegrationId) -> Select[Any]:
        active = self._where(tenant=tenant, integration_id=integration_id, state=LifecycleState.ACTIVE.value)
        return active.outerjoin(IntrospectionRow, _SAME)
