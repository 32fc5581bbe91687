"""Events that webhooks subscribe to, and their deliveries."""

from datetime import datetime

from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlmodel import col

from evergrant_server.core.events import WebhookEvent
from evergrant_server.core.ids import DeliveryId, EventId, Tenant, WebhookId
from evergrant_server.core.webhooks import Delivery, DeliveryStatus, Webhook
from evergrant_server.store.database.rows import (
    ModelRepository,
    column_values,
    columns_equal,
    find_one,
    insert,
)
from evergrant_server.store.webhooks.tables import DeliveryRow, EventRow

_PRUNED_AT_ONCE = 500


class Deliveries(ModelRepository[Delivery, DeliveryId]):
    """Events and deliveries of one transaction."""

    _table, _model = DeliveryRow, Delivery

    async def add_event(self, event: WebhookEvent) -> bool:
        """Add an event; False when it is there already."""
        return await insert(self._connection, EventRow, column_values(event))

    async def event(self, tenant: Tenant, id: EventId) -> WebhookEvent | None:
        row = await find_one(self._connection, EventRow, tenant=tenant, id=id)
        return None if row is None else WebhookEvent.model_validate(row)

    async def add(self, delivery: Delivery) -> None:
        """Add a delivery. Raises Failure ALREADY_EXISTS."""
        await self._add(delivery, f"Delivery {delivery.id}")

    async def due(self, webhook: Webhook, now: datetime, limit: int, *, by_hand: bool) -> list[Delivery]:
        """Due deliveries, the longest overdue first: either those requested by hand, or the others."""
        ripe = _pending(webhook, by_hand) & (col(DeliveryRow.next_at) <= now)
        return await self._all(self._where(ripe).order_by(col(DeliveryRow.next_at)).limit(limit))

    async def next_at(self, webhook: Webhook, *, by_hand: bool) -> datetime | None:
        """When the first pending delivery is due; None without one."""
        first = select(func.min(col(DeliveryRow.next_at))).where(_pending(webhook, by_hand))
        return (await self._connection.execute(first)).scalar_one_or_none()

    async def page(
        self,
        tenant: Tenant,
        webhook_id: WebhookId,
        *,
        status: DeliveryStatus | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[Delivery]:
        """Deliveries to one webhook, newest first (by moment and id), behind `after`."""
        order = (col(DeliveryRow.created_at), col(DeliveryRow.id))
        query = self._where(tenant=tenant, webhook_id=webhook_id)
        if status is not None:
            query = query.where(col(DeliveryRow.status) == status.value)
        if after is not None:
            at, id = after
            query = query.where((order[0] < at) | ((order[0] == at) & (order[1] < id)))
        return await self._all(query.order_by(order[0].desc(), order[1].desc()).limit(limit))

    async def prune(self, tenant: Tenant, webhook_id: WebhookId, before: datetime) -> int:
        """Delete deliveries from before this moment with any outcome, and events without deliveries;
        a bounded number. Returns how many deliveries."""
        mine = columns_equal(DeliveryRow, tenant=tenant, webhook_id=webhook_id)
        oldest = (
            select(col(DeliveryRow.id))
            .where(mine, col(DeliveryRow.created_at) < before)
            .order_by(col(DeliveryRow.created_at))
            .limit(_PRUNED_AT_ONCE)
        )
        gone = await self._run(delete(DeliveryRow).where(mine, col(DeliveryRow.id).in_(oldest)))
        waited_for = exists().where(
            col(DeliveryRow.tenant) == col(EventRow.tenant), col(DeliveryRow.event_id) == col(EventRow.id)
        )
        of_tenant = columns_equal(EventRow, tenant=tenant)
        over = of_tenant & (col(EventRow.at) < before) & ~waited_for
        some = select(col(EventRow.id)).where(over).limit(_PRUNED_AT_ONCE)
        await self._run(delete(EventRow).where(of_tenant, col(EventRow.id).in_(some)))
        return gone

    async def webhooks_with_deliveries_before(
        self, before: datetime, limit: int = 100
    ) -> list[tuple[Tenant, WebhookId]]:
        """Webhooks that have deliveries from before this moment."""
        which = (col(DeliveryRow.tenant), col(DeliveryRow.webhook_id))
        old = select(*which).where(col(DeliveryRow.created_at) < before).distinct().limit(limit)
        rows = (await self._connection.execute(old)).all()
        return [(Tenant(tenant), WebhookId(webhook)) for tenant, webhook in rows]


def _pending(webhook: Webhook, by_hand: bool) -> ColumnElement[bool]:
    waits = columns_equal(DeliveryRow, tenant=webhook.tenant, webhook_id=webhook.id, by_hand=by_hand)
    return waits & (col(DeliveryRow.status) == DeliveryStatus.PENDING.value)
