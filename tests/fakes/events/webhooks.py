"""Webhooks and what becomes of them, on any store."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from evergrant_server.core.events import DEFAULT_EVENTS
from evergrant_server.core.ids import Tenant, WebhookId, new_id
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhooks import Delivery, Webhook, new_signing_secret
from evergrant_server.store import Store

SECRET = new_signing_secret(b"a secret of a webhook, 32 bytes!")
TENANT = Tenant("acme")


def a_webhook(url: str, now: datetime, **changes: Any) -> Webhook:
    values: dict[str, Any] = {
        "tenant": TENANT,
        "id": WebhookId(new_id("whk")),
        "name": "hooks",
        "url": url,
        "events": DEFAULT_EVENTS,
        "secret_changed_at": now,
        "created_at": now,
        "changed_at": now,
        **changes,
    }
    return Webhook(**values)


async def listening(
    store: Store, url: str, now: datetime, secret: Secret = SECRET, **changes: Any
) -> Webhook:
    """A webhook in the store."""
    async with store.write() as tx:
        return await tx.webhooks.add(a_webhook(url, now, **changes), secret)


async def log_of(store: Store, webhook: Webhook) -> list[Delivery]:
    """Its deliveries, newest first."""
    async with store.read() as tx:
        return await tx.deliveries.page(webhook.tenant, webhook.id, limit=200)


async def until_log(
    store: Store, webhook: Webhook, condition: Callable[[list[Delivery]], bool], limit_s: float = 20
) -> list[Delivery]:
    async with asyncio.timeout(limit_s):
        while not condition(found := await log_of(store, webhook)):
            await asyncio.sleep(0.05)
    return found


async def reread(store: Store, webhook: Webhook) -> Webhook:
    async with store.read() as tx:
        found = await tx.webhooks.get(webhook.tenant, webhook.id)
    assert found is not None
    return found


async def until_row(
    store: Store, webhook: Webhook, condition: Callable[[Webhook], bool], limit_s: float = 20
) -> Webhook:
    async with asyncio.timeout(limit_s):
        while not condition(found := await reread(store, webhook)):
            await asyncio.sleep(0.05)
    return found
