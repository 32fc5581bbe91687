"""`/v1/webhooks`: subscriptions to events. For admins of the tenant."""

import secrets
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import (
    ApiDep,
    ContextDep,
    IdempotencyKey,
    TenantAdminDep,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.problems import require_found
from evergrant_server.api.http.requests import PageCursor, PageLimit, Slug
from evergrant_server.api.http.responses import Page
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.webhooks.models import (
    RotateWebhookBody,
    WebhookBody,
    WebhookSecretView,
    WebhookView,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant, WebhookId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.webhooks import SECRET_BYTES, DisabledBy, Webhook, new_signing_secret
from evergrant_server.store import Transaction

router = APIRouter(tags=["webhooks"])

MAX_WEBHOOKS = 50  # webhooks of a tenant: each event is matched against all of them


@router.put("/v1/webhooks/{name}")
async def put_webhook(
    name: Slug,
    body: WebhookBody,
    response: Response,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
) -> WebhookSecretView:
    """Create or change a webhook. Only the response that creates it contains the signing secret.

    After enabling it or changing its URL, pending deliveries are sent at once.
    """
    _require_reachable(api, body.url)

    async def write(tx: Transaction) -> tuple[Webhook, str | None]:
        now = api.clock.now()
        before = await tx.webhooks.by_name(caller.tenant, name)
        if before is None:
            secret = new_signing_secret(secrets.token_bytes(SECRET_BYTES))
            after = await tx.webhooks.add(await _new_webhook(tx, caller.tenant, name, body, now), secret)
            shown = secret.reveal()
        else:
            after = await tx.webhooks.replace(_with_body(before, body, now), expected=before.revision)
            shown = None
            if not after.disabled and (before.disabled or before.url != after.url):
                await audit.wake_webhook(tx, after, context, now, at_once=True)
        detail = {"origin": _origin(after.url), "events": [it.value for it in after.events]}
        more = {"integration": after.integration, "disabled": after.disabled}
        await record_webhook_change(tx, AuditAction.WEBHOOK_PUT, after, context, now, **detail, **more)
        return after, shown

    after, shown = await run_transaction(api.store, write)
    api.relay.notify()
    response.status_code = 200 if shown is None else 201
    return WebhookSecretView.with_secret(after, shown)


@router.get("/v1/webhooks")
async def list_webhooks(
    api: ApiDep,
    caller: TenantAdminDep,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[WebhookView]:
    """All webhooks of the tenant, sorted by name."""
    after = api.cursors.decode(cursor, caller.tenant, list="webhooks")
    async with api.store.read() as tx:
        found = await tx.webhooks.page(caller.tenant, after, limit + 1)
    next_cursor = api.cursors.next_cursor(found, limit, lambda it: it.name, caller.tenant, list="webhooks")
    return Page(items=[WebhookView.of(it) for it in found[:limit]], next_cursor=next_cursor)


@router.get("/v1/webhooks/{name}")
async def get_webhook(name: Slug, api: ApiDep, caller: TenantAdminDep) -> WebhookView:
    """A webhook with the state of its endpoint. Never its signing secret."""
    async with api.store.read() as tx:
        return WebhookView.of(await require_webhook(tx, caller.tenant, name))


@router.delete("/v1/webhooks/{name}", status_code=204)
async def delete_webhook(name: Slug, api: ApiDep, caller: TenantAdminDep, context: ContextDep) -> Response:
    """Delete the webhook with its secret and delivery log. Pending deliveries are dropped."""

    async def drop(tx: Transaction) -> None:
        webhook = await require_webhook(tx, caller.tenant, name)
        await tx.webhooks.delete(caller.tenant, webhook.id)
        await record_webhook_change(tx, AuditAction.WEBHOOK_DELETED, webhook, context, api.clock.now())

    await run_transaction(api.store, drop)
    return Response(status_code=204)


@router.post("/v1/webhooks/{name}/rotate-secret", response_model=WebhookSecretView)
async def rotate_webhook_secret(
    name: Slug,
    request: Request,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
    body: RotateWebhookBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Create a new signing secret and return it once. In the overlap, messages carry both signatures."""
    command = IdempotentCommand(request, caller, key, body)
    overlap = api.settings.webhook_secret_overlap
    if body is not None and body.overlap is not None:
        overlap = timedelta(seconds=body.overlap)

    async def rotate(tx: Transaction) -> CommandResponse:
        now = api.clock.now()
        webhook = await require_webhook(tx, caller.tenant, name)
        changes = {
            "secret_changed_at": now,
            "previous_secret_until": now + overlap if overlap else None,
            "changed_at": now,
        }
        secret = new_signing_secret(secrets.token_bytes(SECRET_BYTES))
        after = await tx.webhooks.rotate_secret(
            webhook.model_copy(update=changes), secret, expected=webhook.revision
        )
        seconds = overlap.total_seconds()
        await record_webhook_change(
            tx, AuditAction.WEBHOOK_SECRET_ROTATED, after, context, now, overlap=seconds
        )
        return CommandResponse.from_view(200, WebhookSecretView.with_secret(after, secret.reveal()))

    return (await command.run(api, rotate)).response()


def _require_reachable(api: ApiContext, url: str) -> None:
    """Raise Failure INVALID_REQUEST for a URL that egress never allows. Names are resolved at delivery."""
    try:
        api.check_endpoint(url)
    except Failure as failure:
        raise Failure(ErrorCode.INVALID_REQUEST, f"url: {failure.detail}", field="url") from None


async def _new_webhook(
    tx: Transaction, tenant: Tenant, name: str, body: WebhookBody, now: datetime
) -> Webhook:
    if len(await tx.webhooks.page(tenant, limit=MAX_WEBHOOKS)) == MAX_WEBHOOKS:
        raise Failure(
            ErrorCode.INVALID_REQUEST, f"A tenant has {MAX_WEBHOOKS} webhooks at most.", field="name"
        )
    return Webhook(
        tenant=tenant,
        id=WebhookId(new_id("whk")),
        name=name,
        url=body.url,
        events=body.events,
        integration=body.integration,
        disabled_by=DisabledBy.ADMIN if body.disabled else None,
        secret_changed_at=now,
        created_at=now,
        changed_at=now,
    )


def _with_body(before: Webhook, body: WebhookBody, now: datetime) -> Webhook:
    start = before
    if body.disabled:
        start = before if before.disabled else before.model_copy(update={"disabled_by": DisabledBy.ADMIN})
    elif before.disabled or body.url != before.url:
        start = before.enabled()
    changes = {"url": body.url, "events": body.events, "integration": body.integration, "changed_at": now}
    return start.model_copy(update=changes)


def _origin(url: str) -> str:
    """Scheme and host of the URL. Path and query may contain a secret, and the audit log is permanent."""
    parsed = urlsplit(url)
    return f"{parsed.scheme}://{parsed.netloc}"


async def require_webhook(tx: Transaction, tenant: Tenant, name: str) -> Webhook:
    """The webhook of this name. Raises Failure NOT_FOUND."""
    return require_found(await tx.webhooks.by_name(tenant, name))


async def record_webhook_change(
    tx: Transaction,
    action: AuditAction,
    webhook: Webhook,
    context: RequestContext,
    now: datetime,
    **detail: object,
) -> None:
    await record(tx, webhook.tenant, action, webhook.id, context, now, webhook=webhook.name, **detail)
