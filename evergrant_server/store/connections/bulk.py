"""Bulk orders: rows that say what was ordered. Their connections are rows of `incidents.IncidentItems`."""

from datetime import datetime
from typing import Any

from sqlmodel import col

from evergrant_server.core.connections.bulk import BulkOrder
from evergrant_server.core.ids import BulkId, Tenant
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database import columns


class BulkOrderRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.partial_index("ix_bulk_order_unfinished", "created_at", where="finished_at IS NULL"),
    )
    action: str
    filters: dict[str, Any] = columns.json()
    label: str | None = None
    reason: str
    by: str
    state: str
    paused: bool
    created_at: datetime = columns.timestamp()
    waits_until: datetime = columns.timestamp()
    selected: int
    ended: int
    outcomes: dict[str, int] = columns.json()
    after: str
    idle: int
    finished_at: datetime | None = columns.timestamp()
    mac: str | None = None


class BulkOrders(AuthenticatedRepository[BulkOrder, BulkId]):
    _table, _model = BulkOrderRow, BulkOrder

    async def add(self, order: BulkOrder) -> None:
        """Raises Failure ALREADY_EXISTS."""
        await self._add(order, f"Bulk order {order.id}")

    async def page(self, tenant: Tenant, after: str | None, limit: int) -> list[BulkOrder]:
        """Orders sorted by id. Not checked."""
        return await self._page(self._where(tenant=tenant), "id", after, limit)

    async def newest(self, tenant: Tenant, limit: int) -> list[BulkOrder]:
        """The last orders, the newest first. Not checked."""
        row = BulkOrderRow
        query = self._where(tenant=tenant).order_by(col(row.created_at).desc(), col(row.id))
        return await self._all_unchecked(query.limit(limit))

    async def unfinished(self, before: datetime, limit: int) -> list[BulkOrder]:
        """Those of every tenant from before then that haven't ended. Not checked."""
        row = BulkOrderRow
        late = self._where(col(row.finished_at).is_(None), col(row.created_at) < before)
        return await self._all_unchecked(late.order_by(col(row.created_at)).limit(limit))
