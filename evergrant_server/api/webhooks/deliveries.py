"""`/v1/webhooks/{name}/deliveries`: delivery log, replay and test event. For admins of the tenant."""

from datetime import datetime

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.http.call import AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, Slug, View
from evergrant_server.api.webhooks.routes import require_webhook
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.events import EventType, WebhookEvent, ping_body
from evergrant_server.core.ids import DeliveryId, EventId, new_id
from evergrant_server.core.webhooks import Delivery, DeliveryStatus, Webhook
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction

router = APIRouter(tags=["webhooks"])


class DeliveryView(View):
    """The delivery of one event. `event_id` is the `webhook-id` that the receiver gets."""

    id: str
    event_id: str
    event_type: EventType
    status: DeliveryStatus
    attempts: int
    response_status: int | None
    problem: str | None
    next_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


@router.post("/v1/webhooks/{name}/test", status_code=202, response_model=DeliveryView)
async def send_ping(name: Slug, call: AdminCommand) -> Response:
    """Send a `webhook.ping` before pending deliveries. The delivery log shows the outcome."""

    async def ping(tx: Transaction) -> CommandResponse:
        now = call.now
        webhook = await _require_enabled(tx, call, name)
        event = WebhookEvent(
            tenant=call.tenant,
            id=EventId(new_id("evt")),
            type=EventType.PING,
            connection_id=None,
            at=now,
            body=ping_body(call.tenant, webhook.name, now),
        )
        (delivery,) = await audit.write_event(tx, [webhook], event, call.context, now, by_hand=True)
        await call.record(tx, AuditAction.WEBHOOK_TESTED, webhook.id, webhook=name, event=event.id)
        return CommandResponse.of(DeliveryView.of(delivery), 202)

    return await call.run(None, ping)


@router.get("/v1/webhooks/{name}/deliveries")
async def list_deliveries(
    name: Slug,
    call: AuditorCall,
    status: DeliveryStatus | None = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[DeliveryView]:
    """The delivery log, newest first."""
    async with call.api.store.read() as tx:
        webhook = await require_webhook(tx, call, name)
        bound = {"list": "deliveries", "of": webhook.id, "status": status}
        after = call.cursors.decode(cursor, call.tenant, **bound)
        at, _, id = (after or "").partition(" ")
        position = None if after is None else (datetime.fromisoformat(at), DeliveryId(id))
        found = await tx.deliveries.page(
            call.tenant, webhook.id, status=status, after=position, limit=limit + 1
        )
    next_cursor = call.cursors.next_cursor(found, limit, _cursor_position, call.tenant, **bound)
    return Page(items=[DeliveryView.of(it) for it in found[:limit]], next_cursor=next_cursor)


@router.post(
    "/v1/webhooks/{name}/deliveries/{delivery_id}/replay", status_code=202, response_model=DeliveryView
)
async def replay_delivery(name: Slug, delivery_id: str, call: AdminCommand) -> Response:
    """Send a delivery again. It keeps its `webhook-id`, by which receivers deduplicate."""

    async def again(tx: Transaction) -> CommandResponse:
        now = call.now
        webhook = await _require_enabled(tx, call, name)
        found = await tx.deliveries.get(call.tenant, DeliveryId(delivery_id))
        if found is None or found.webhook_id != webhook.id:
            raise Failure(ErrorCode.NOT_FOUND)
        after = await tx.deliveries.replace(found.replayed(now), expected=found.revision)
        await audit.wake_webhook(tx, webhook, call.context, now, at_once=True)
        await call.record(tx, AuditAction.DELIVERY_REPLAYED, webhook.id, webhook=name, delivery=found.id)
        return CommandResponse.of(DeliveryView.of(after), 202)

    return await call.run(None, again)


async def _require_enabled(tx: Transaction, call: ApiCall, name: str) -> Webhook:
    """The webhook. Raises Failure NOT_FOUND, INVALID_REQUEST for a disabled one."""
    webhook = await require_webhook(tx, call, name)
    if webhook.disabled:
        raise invalid_request("disabled", "The webhook is disabled: enable it first.")
    return webhook


def _cursor_position(it: Delivery) -> str:
    return f"{it.created_at.isoformat()} {it.id}"
