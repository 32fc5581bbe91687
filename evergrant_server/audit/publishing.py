"""Events of webhooks: written with their deliveries in the transaction of the audit record."""

from datetime import datetime

from evergrant_server.core.audit import AuditEntry
from evergrant_server.core.events import (
    APP_EVENTS,
    EventType,
    WebhookEvent,
    app_event_body,
    event_body,
    events_of,
)
from evergrant_server.core.ids import ConnectionId, DeliveryId, EventId, OutboxId, derived_id, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import WakeWebhook
from evergrant_server.core.messages.names import webhook_workflow_id
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.core.webhooks import ANY_INTEGRATION, Delivery, Webhook
from evergrant_server.store import Transaction


async def publish_events(tx: Transaction, entry: AuditEntry) -> None:
    """Write the events that this record is, with a delivery to each webhook that wants them.

    The caller holds the lock of the tree: only new rows are written, so no other writer is delayed.
    """
    types = events_of(entry.action, entry.detail)
    if not types:
        return
    listening = await tx.webhooks.enabled(entry.tenant)
    if not any(type in webhook.events for webhook in listening for type in types):
        return
    if types[0] in APP_EVENTS:
        subscribed = [webhook for webhook in listening if webhook.subscribes_to(types[0], ANY_INTEGRATION)]
        event = _event(entry, None, types[0], app_event_body(types[0], entry))
        await write_event(tx, subscribed, event, entry.context, entry.at)
        return
    connection = await tx.connections.get(entry.tenant, ConnectionId(entry.object))
    if connection is None:
        return
    grant = await tx.grants.get(entry.tenant, connection.id)
    for type in types:
        subscribed = [webhook for webhook in listening if webhook.subscribes_to(type, connection.integration)]
        body = event_body(type, entry, connection, grant)
        await write_event(tx, subscribed, _event(entry, connection.id, type, body), entry.context, entry.at)


async def write_event(
    tx: Transaction,
    webhooks: list[Webhook],
    event: WebhookEvent,
    context: RequestContext,
    now: datetime,
    *,
    by_hand: bool = False,
) -> list[Delivery]:
    """Write one event, its deliveries and the messages that wake those who deliver.

    An event that exists already is not written again.
    """
    if not webhooks or not await tx.deliveries.add_event(event):
        return []
    written: list[Delivery] = []
    for webhook in webhooks:
        delivery = Delivery(
            tenant=event.tenant,
            id=DeliveryId(new_id("dlv")),
            webhook_id=webhook.id,
            event_id=event.id,
            event_type=event.type,
            by_hand=by_hand,
            next_at=now,
            created_at=now,
        )
        await tx.deliveries.add(delivery)
        await wake_webhook(tx, webhook, context, now, at_once=by_hand)
        written.append(delivery)
    return written


async def wake_webhook(
    tx: Transaction, webhook: Webhook, context: RequestContext, now: datetime, *, at_once: bool = False
) -> None:
    """Have the webhook's workflow look at what waits."""
    order = WakeWebhook(tenant=webhook.tenant, webhook_id=webhook.id, at_once=at_once, context=context)
    id = OutboxId(new_id("out"))
    message = OutboxMessage(
        tenant=webhook.tenant,
        id=id,
        kind=OutboxKind.WAKE_WEBHOOK,
        # a target of its own: wakes need no order, and their writers must not wait for each other
        target=f"{webhook_workflow_id(webhook.tenant, webhook.id)}:{id}",
        payload=order.model_dump(mode="json"),
        created_at=now,
    )
    await tx.outbox.add(message)


def _event(entry: AuditEntry, connection_id: ConnectionId | None, type: EventType, body: str) -> WebhookEvent:
    """The event of a record. Its id is derived from the workflow event, so a retried activity adds none."""
    by = entry.provenance
    id = new_id("evt")
    if by is not None and connection_id is not None:
        id = derived_id("evt", entry.tenant, connection_id, type, by.workflow_id, by.run_id, by.event_id)
    return WebhookEvent(
        tenant=entry.tenant,
        id=EventId(id),
        type=type,
        connection_id=connection_id,
        at=entry.at,
        body=body,
    )
