"""`/v1/webhooks/{name}/deliveries`: delivery log, replay and test event. For admins of the tenant."""

from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.http.dependencies import (
    ApiDep,
    ContextDep,
    IdempotencyKey,
    TenantAdminDep,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.requests import PageCursor, PageLimit, Slug
from evergrant_server.api.http.responses import Page
from evergrant_server.api.webhooks.models import DeliveryView
from evergrant_server.api.webhooks.routes import record_webhook_change, require_webhook
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.events import EventType, WebhookEvent, ping_body
from evergrant_server.core.ids import DeliveryId, EventId, new_id
from evergrant_server.core.webhooks import Delivery, DeliveryStatus, Webhook
from evergrant_server.store import Transaction

router = APIRouter(tags=["webhooks"])


@router.post("/v1/webhooks/{name}/test", status_code=202, response_model=DeliveryView)
async def send_ping(
    name: Slug,
    request: Request,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Send a `webhook.ping` before pending deliveries. The delivery log shows the outcome."""
    command = IdempotentCommand(request, caller, key, None)

    async def ping(tx: Transaction) -> CommandResponse:
        now = api.clock.now()
        webhook = await require_webhook(tx, caller.tenant, name)
        _require_enabled(webhook)
        event = WebhookEvent(
            tenant=caller.tenant,
            id=EventId(new_id("evt")),
            type=EventType.PING,
            connection_id=None,
            at=now,
            body=ping_body(caller.tenant, webhook.name, now),
        )
        (delivery,) = await audit.write_event(tx, [webhook], event, context, now, by_hand=True)
        await record_webhook_change(tx, AuditAction.WEBHOOK_TESTED, webhook, context, now, event=event.id)
        return CommandResponse.from_view(202, DeliveryView.of(delivery))

    return (await command.run(api, ping)).response()


@router.get("/v1/webhooks/{name}/deliveries")
async def list_deliveries(
    name: Slug,
    api: ApiDep,
    caller: TenantAdminDep,
    status: DeliveryStatus | None = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[DeliveryView]:
    """The delivery log, newest first."""
    async with api.store.read() as tx:
        webhook = await require_webhook(tx, caller.tenant, name)
        bound = {"list": "deliveries", "of": webhook.id, "status": status}
        after = api.cursors.decode(cursor, caller.tenant, **bound)
        position = None if after is None else _parse_position(after)
        found = await tx.deliveries.page(
            caller.tenant, webhook.id, status=status, after=position, limit=limit + 1
        )
    next_cursor = api.cursors.next_cursor(found, limit, _cursor_position, caller.tenant, **bound)
    return Page(items=[DeliveryView.of(it) for it in found[:limit]], next_cursor=next_cursor)


@router.post(
    "/v1/webhooks/{name}/deliveries/{delivery_id}/replay", status_code=202, response_model=DeliveryView
)
async def replay_delivery(
    name: Slug,
    delivery_id: str,
    request: Request,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Send a delivery again. It keeps its `webhook-id`, by which receivers deduplicate."""
    command = IdempotentCommand(request, caller, key, None)

    async def again(tx: Transaction) -> CommandResponse:
        now = api.clock.now()
        webhook = await require_webhook(tx, caller.tenant, name)
        _require_enabled(webhook)
        found = await tx.deliveries.get(caller.tenant, DeliveryId(delivery_id))
        if found is None or found.webhook_id != webhook.id:
            raise Failure(ErrorCode.NOT_FOUND)
        after = await tx.deliveries.replace(found.replayed(now), expected=found.revision)
        await audit.wake_webhook(tx, webhook, context, now, at_once=True)
        await record_webhook_change(
            tx, AuditAction.DELIVERY_REPLAYED, webhook, context, now, delivery=found.id
        )
        return CommandResponse.from_view(202, DeliveryView.of(after))

    return (await command.run(api, again)).response()


def _require_enabled(webhook: Webhook) -> None:
    """Raise Failure INVALID_REQUEST for a disabled webhook."""
    if webhook.disabled:
        raise Failure(
            ErrorCode.INVALID_REQUEST, "The webhook is disabled: enable it first.", field="disabled"
        )


def _cursor_position(it: Delivery) -> str:
    return f"{it.created_at.isoformat()} {it.id}"


def _parse_position(place: str) -> tuple[datetime, str]:
    at, _, id = place.partition(" ")
    return datetime.fromisoformat(at), id
