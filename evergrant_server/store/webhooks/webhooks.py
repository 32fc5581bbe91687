"""Webhooks and their signing secrets, sealed by the tenant's intake key: admins make them, workers sign."""

from datetime import datetime

from sqlalchemy import delete, exists, or_
from sqlmodel import col

from evergrant_server.core.ids import Tenant, WebhookId
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhooks import DeliveryStatus, Webhook
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.sealing import IntakeRepository
from evergrant_server.store.webhooks.tables import DeliveryRow, EventRow, WebhookRow

_SECRET, _PREVIOUS = "sealed_secret", "sealed_previous_secret"


class Webhooks(IntakeRepository[Webhook, WebhookId]):
    """Webhooks of one transaction."""

    _table, _model = WebhookRow, Webhook

    async def add(self, webhook: Webhook, secret: Secret) -> Webhook:
        """Add a webhook with its secret. Raises Failure ALREADY_EXISTS when the name is there."""
        sealed = await self._sealed(webhook, {_SECRET: secret})
        return await self._add(webhook, f"Webhook {webhook.name!r}", **sealed)

    async def by_name(self, tenant: Tenant, name: str) -> Webhook | None:
        return await self._one(tenant=tenant, name=name)

    async def page(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[Webhook]:
        """Webhooks sorted by name, after the name `after`."""
        return await self._page(self._where(tenant=tenant), "name", after, limit)

    async def enabled(self, tenant: Tenant) -> list[Webhook]:
        """Those of the tenant that are not disabled: a handful, or none, in one look at an index."""
        return await self._all(self._where(tenant=tenant, disabled_by=None))

    async def with_overdue_deliveries(self, before: datetime) -> list[Webhook]:
        """Those of every tenant that should have been sent something before this moment."""
        paused_until = col(WebhookRow.paused_until)
        waits = exists().where(
            col(DeliveryRow.tenant) == col(WebhookRow.tenant),
            col(DeliveryRow.webhook_id) == col(WebhookRow.id),
            col(DeliveryRow.status) == DeliveryStatus.PENDING.value,
            col(DeliveryRow.next_at) < before,
        )
        works = col(WebhookRow.disabled_by).is_(None), or_(paused_until.is_(None), paused_until < before)
        return await self._all(self._where(*works, waits))

    async def rotate_secret(self, webhook: Webhook, new: Secret, *, expected: int) -> Webhook:
        """Write a new secret; the previous one stays valid until `previous_secret_until`.

        Raises Failure STORE_CONFLICT, NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        old = await self._opened(webhook, _SECRET)
        kept = None if webhook.previous_secret_until is None else old
        sealed = await self._sealed(webhook, {_SECRET: new, _PREVIOUS: kept})
        return await self._change(webhook, expected, **sealed)

    async def signing_secrets(self, webhook: Webhook, now: datetime) -> tuple[Secret, ...]:
        """The secrets that sign messages now: the current one and, during a rotation, the previous one.

        Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        current = await self._opened(webhook, _SECRET)
        until = webhook.previous_secret_until
        previous = None if until is None or now >= until else await self._opened(webhook, _PREVIOUS)
        return tuple(it for it in (current, previous) if it is not None)

    async def delete(self, tenant: Tenant, id: WebhookId) -> None:
        """Delete it with its secrets and its deliveries. Raises Failure NOT_FOUND."""
        await self._delete(id, tenant=tenant, id=id)
        await self._run(delete(DeliveryRow).where(columns_equal(DeliveryRow, tenant=tenant, webhook_id=id)))
        waited_for = exists().where(
            col(DeliveryRow.tenant) == col(EventRow.tenant), col(DeliveryRow.event_id) == col(EventRow.id)
        )
        await self._run(delete(EventRow).where(columns_equal(EventRow, tenant=tenant), ~waited_for))
