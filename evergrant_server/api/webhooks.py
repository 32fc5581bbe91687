"""`/v1/webhooks`: subscriptions to events, their signing secrets, the delivery log. For admins of the tenant.

Doesn't own delivery (a worker's) or the events (core).
"""

import secrets
from datetime import datetime, timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import AfterValidator, Field
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.access.approvals import dangerous, fingerprint, use_approval
from evergrant_server.api.http.call import (
    AdminCall,
    AdminChange,
    AdminCommand,
    ApiCall,
    AuditorCall,
    CommandResponse,
)
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, View, absolute_url
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.events import DEFAULT_EVENTS, EventType, WebhookEvent, ping_body
from evergrant_server.core.ids import DeliveryId, EventId, WebhookId, new_id
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import SECRET_BYTES, new_signing_secret
from evergrant_server.core.webhooks import (
    ANY_INTEGRATION,
    Delivery,
    DeliveryStatus,
    DisabledBy,
    Webhook,
    masked_url,
)
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["webhooks"])

MAX_WEBHOOKS = 50  # webhooks of a tenant: each event is matched against all of them
_MAX_OVERLAP_S = 30 * 86_400
_MOST_REPLAYED = 1000  # deliveries at once


def _events(value: tuple[EventType, ...]) -> tuple[EventType, ...]:
    if EventType.PING in value:
        raise ValueError("webhook.ping can't be subscribed to: POST /v1/webhooks/{name}/test sends it")
    return tuple(dict.fromkeys(value))


class WebhookBody(Body):
    """A subscription. `connection.refreshed` is not among the default `events`."""

    # the egress policy checks its host
    url: Annotated[str, Field(max_length=2000), AfterValidator(absolute_url)]
    events: Annotated[tuple[EventType, ...], Field(min_length=1, max_length=50), AfterValidator(_events)] = (
        DEFAULT_EVENTS
    )
    integration: Literal["*"] | Slug = ANY_INTEGRATION
    disabled: bool = False


class RotateWebhookBody(Body):
    """`overlap` is the time in seconds in which both secrets sign; 0 ends the previous one at once."""

    overlap: float | None = Field(default=None, ge=0, le=_MAX_OVERLAP_S, allow_inf_nan=False)


class WebhookView(View):
    """`failures` counts consecutive failed attempts; `paused_until` is the time of the next one.

    While it fails `problem` says why, with the receiver's `response_status` if it answered.
    `failed_deliveries` were given up, and can be replayed.
    """

    id: str
    name: str
    url: str
    events: tuple[EventType, ...]
    integration: str
    disabled: bool
    disabled_by: DisabledBy | None
    failures: int
    failing_since: datetime | None
    problem: str | None = None
    response_status: int | None = None
    failed_deliveries: int = 0
    paused_until: datetime | None
    secret_changed_at: datetime
    previous_secret_until: datetime | None
    created_at: datetime
    changed_at: datetime
    revision: int


class WebhookSecretView(WebhookView):
    """`secret` is set only in the response that created it."""

    secret: str | None


@router.put("/v1/webhooks/{name}")
@dangerous("a new webhook, and each change: of where events go, of which, or whether any do")
async def put_webhook(
    name: Slug, body: WebhookBody, response: Response, call: AdminChange
) -> WebhookSecretView:
    """Create or change a webhook. Only the response that creates it contains the signing secret.

    After enabling it or changing its URL, pending deliveries are sent at once. The URL's query is sealed:
    answers show `***` in its place, and a request with that URL leaves it as it is.
    """
    call.api.require_endpoint("url", body.url)  # names are resolved at delivery
    call.require_change_of_url(body.url)

    async def write(tx: Transaction) -> tuple[Webhook, str | None]:
        before = await tx.webhooks.by_name_unchecked(call.tenant, name)
        approved: dict[str, str] = {}
        if before is None or await _moves(tx, before, body) or _says_otherwise(before, body):
            shown_url, _ = masked_url(body.url)
            facts = {"webhook": before and before.id, "url": fingerprint(call, body.url)}
            approved = await use_approval(tx, call, body.__replace__(url=shown_url), facts)
        if before is None:
            secret = new_signing_secret(secrets.token_bytes(SECRET_BYTES))
            after = await tx.webhooks.add(await _new_webhook(tx, call, name, body), secret)
            shown = secret.reveal()
        else:
            after, shown = await _change(tx, call, before, body), None
        detail = {
            "webhook": name,
            "origin": _origin(after.url),
            "events": [event.value for event in after.events],
            "integration": after.integration,
            "disabled": after.disabled,
        }
        await call.record(tx, AuditAction.WEBHOOK_PUT, after.id, **detail, **approved)
        return after, shown

    after, shown = await call.write(write)
    response.status_code = 200 if shown is None else 201
    return WebhookSecretView.of(after, secret=None if call.dry_run else shown)


async def _change(tx: Transaction, call: ApiCall, before: Webhook, body: WebhookBody) -> Webhook:
    """Write the body's members, and have pending deliveries sent where the webhook works again or moved."""
    moved = await _moves(tx, before, body)
    if call.dry_run is not None:
        call.dry_run.note_secrets({"url": moved})
    changed = _with_body(before, body, moved=moved).__replace__(changed_at=call.now)
    if moved:
        after = await tx.webhooks.replace_with_url(changed, body.url, expected=before.revision)
    else:
        after = await tx.webhooks.replace(changed, expected=before.revision)
    if not after.disabled and (before.disabled or moved):
        await audit.wake_webhook(tx, after, call.context, call.now, at_once=True)
    return after


@router.get("/v1/webhooks")
async def list_webhooks(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[WebhookView]:
    """All webhooks of the tenant, sorted by name."""
    listing = call.listing("webhooks", limit, cursor)
    async with call.api.store.read() as tx:
        webhooks = await tx.webhooks.page(call.tenant, listing.after, listing.most)
        views = [await _view(tx, webhook) for webhook in webhooks]
    return listing.page(views, webhooks, lambda webhook: webhook.name)


@router.get("/v1/webhooks/{name}")
async def get_webhook(name: Slug, call: AuditorCall) -> WebhookView:
    """A webhook with the state of its endpoint. Never its signing secret."""
    async with call.api.store.read() as tx:
        return await _view(tx, await require_webhook(tx, call, name))


async def _view(tx: Transaction, webhook: Webhook) -> WebhookView:
    """The webhook with why it fails, and how many deliveries could be replayed."""
    refusal = await tx.deliveries.newest_refusal(webhook) if webhook.failing_since is not None else None
    why = {} if refusal is None else refusal.model_dump(include={"problem", "response_status"})
    return WebhookView.of(webhook, failed_deliveries=await tx.deliveries.count_failed(webhook), **why)


@router.delete("/v1/webhooks/{name}", status_code=204)
@dangerous("always: it silences what watches")
async def delete_webhook(name: Slug, call: AdminCall) -> Response:
    """Delete the webhook with its secret and delivery log. Pending deliveries are dropped."""

    async def drop(tx: Transaction) -> None:
        webhook = require_found(await tx.webhooks.by_name_unchecked(call.tenant, name))
        approved = await use_approval(tx, call, None, {"webhook": webhook.id})
        await tx.webhooks.delete(call.tenant, webhook.id)
        await call.record(tx, AuditAction.WEBHOOK_DELETED, webhook.id, webhook=name, **approved)

    await call.write(drop)
    return Response(status_code=204)


@router.post("/v1/webhooks/{name}/rotate-secret", response_model=WebhookSecretView)
@dangerous("always: who has the secret signs events")
async def rotate_webhook_secret(
    name: Slug, call: AdminCommand, body: RotateWebhookBody | None = None
) -> Response:
    """Create a new signing secret and return it once. In the overlap, messages carry both signatures."""
    overlap = call.api.settings.webhook_secret_overlap
    if body is not None and body.overlap is not None:
        overlap = timedelta(seconds=body.overlap)

    async def rotate(tx: Transaction) -> CommandResponse:
        now = call.now
        webhook = await require_webhook(tx, call, name)
        approved = await use_approval(tx, call, body, {"webhook": webhook.id, "url": webhook.url})
        secret = new_signing_secret(secrets.token_bytes(SECRET_BYTES))
        changed = webhook.__replace__(
            secret_changed_at=now, previous_secret_until=now + overlap if overlap else None, changed_at=now
        )
        after = await tx.webhooks.rotate_secret(changed, secret, expected=webhook.revision)
        detail = {"webhook": name, "overlap": overlap.total_seconds(), **approved}
        await call.record(tx, AuditAction.WEBHOOK_SECRET_ROTATED, after.id, **detail)
        return CommandResponse.of(WebhookSecretView.of(after, secret=secret.reveal()))

    return await call.run(body, rotate)


async def _moves(tx: Transaction, before: Webhook, body: WebhookBody) -> bool:
    """Whether the body has another URL; the masked one leaves it as it is."""
    return body.url != before.url and Secret(body.url) != await tx.webhooks.whole_url(before)


async def _new_webhook(tx: Transaction, call: ApiCall, name: str, body: WebhookBody) -> Webhook:
    await tx.take_turns(f"webhooks:{call.tenant}")
    if len(await tx.webhooks.page(call.tenant, limit=MAX_WEBHOOKS)) == MAX_WEBHOOKS:
        raise invalid_request("name", f"A tenant has {MAX_WEBHOOKS} webhooks at most.")
    now = call.now
    return Webhook(
        tenant=call.tenant,
        id=WebhookId(new_id("whk")),
        name=name,
        disabled_by=DisabledBy.ADMIN if body.disabled else None,
        secret_changed_at=now,
        created_at=now,
        changed_at=now,
        **body.model_dump(exclude={"disabled"}),
    )


def _with_body(before: Webhook, body: WebhookBody, *, moved: bool) -> Webhook:
    start = before
    if body.disabled:
        start = before if before.disabled else before.__replace__(disabled_by=DisabledBy.ADMIN)
    elif before.disabled or moved:
        start = before.enabled()
    return start.__replace__(**body.model_dump(exclude={"disabled", "url"}))


def _says_otherwise(before: Webhook, body: WebhookBody) -> bool:
    """Whether other events are sent than before, of another integration, or none."""
    wanted = (body.events, body.integration, body.disabled)
    return wanted != (before.events, before.integration, before.disabled)


def _origin(url: str) -> str:
    """Scheme and host of the URL. Path and query may contain a secret, and the audit log is permanent."""
    parsed = urlsplit(url)
    return f"{parsed.scheme}://{parsed.netloc}"


async def require_webhook(tx: Transaction, call: ApiCall, name: str) -> Webhook:
    """The webhook of this name. Raises Failure NOT_FOUND."""
    return require_found(await tx.webhooks.by_name(call.tenant, name))


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
        listing = call.listing("deliveries", limit, cursor, of=webhook.id, status=status)
        at, _, id = (listing.after or "").partition(" ")
        after = None if listing.after is None else (datetime.fromisoformat(at), DeliveryId(id))
        deliveries = await tx.deliveries.page(
            call.tenant, webhook.id, status=status, after=after, limit=listing.most
        )
    return listing.page([DeliveryView.of(delivery) for delivery in deliveries], deliveries, _place)


@router.post(
    "/v1/webhooks/{name}/deliveries/{delivery_id}/replay", status_code=202, response_model=DeliveryView
)
async def replay_delivery(name: Slug, delivery_id: str, call: AdminCommand) -> Response:
    """Send a delivery again. It keeps its `webhook-id`, by which receivers deduplicate."""

    async def again(tx: Transaction) -> CommandResponse:
        now = call.now
        webhook = await _require_enabled(tx, call, name)
        delivery = await tx.deliveries.get(call.tenant, DeliveryId(delivery_id))
        if delivery is None or delivery.webhook_id != webhook.id:
            raise Failure(ErrorCode.NOT_FOUND)
        after = await tx.deliveries.replace(delivery.replayed(now), expected=delivery.revision)
        await audit.wake_webhook(tx, webhook, call.context, now, at_once=True)
        await call.record(tx, AuditAction.DELIVERY_REPLAYED, webhook.id, webhook=name, delivery=delivery.id)
        return CommandResponse.of(DeliveryView.of(after), 202)

    return await call.run(None, again)


class ReplayedView(View):
    """How many deliveries are sent again. `failed_deliveries` are left: repeat the request."""

    replayed: int
    failed_deliveries: int


@router.post("/v1/webhooks/{name}/replay-failed", status_code=202, response_model=ReplayedView)
async def replay_failed_deliveries(name: Slug, call: AdminCommand) -> Response:
    """Send the deliveries again that were given up, the oldest first: up to 1000 at once. Each keeps its
    `webhook-id`, by which receivers deduplicate."""

    async def again(tx: Transaction) -> CommandResponse:
        now = call.now
        webhook = await _require_enabled(tx, call, name)
        replayed = await tx.deliveries.replay_failed(webhook, now, _MOST_REPLAYED)
        if replayed:
            await audit.wake_webhook(tx, webhook, call.context, now, at_once=True)
            detail = {"webhook": name, "deliveries": replayed}
            await call.record(tx, AuditAction.DELIVERY_REPLAYED, webhook.id, **detail)
        left = await tx.deliveries.count_failed(webhook)
        return CommandResponse.of(ReplayedView(replayed=replayed, failed_deliveries=left), 202)

    return await call.run(None, again)


async def _require_enabled(tx: Transaction, call: ApiCall, name: str) -> Webhook:
    """The webhook. Raises Failure NOT_FOUND, INVALID_REQUEST for a disabled one."""
    webhook = await require_webhook(tx, call, name)
    if webhook.disabled:
        raise invalid_request("disabled", "The webhook is disabled: enable it first.")
    return webhook


def _place(delivery: Delivery) -> str:
    return f"{delivery.created_at.isoformat()} {delivery.id}"
