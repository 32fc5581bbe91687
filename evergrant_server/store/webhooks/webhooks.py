"""Webhooks and their signing secrets, sealed by the tenant's intake key: admins make them, workers sign."""

from datetime import datetime

from sqlalchemy import delete, exists, or_, select
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant, WebhookId
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhooks import DeliveryStatus, Webhook
from evergrant_server.crypto import AssociatedData, KeyPurpose, Sealed
from evergrant_server.store.database.rows import (
    Values,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_models,
    find_model,
    find_one,
    insert,
)
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.store.sealing import SealedRepository
from evergrant_server.store.webhooks.tables import DeliveryRow, EventRow, WebhookRow

_SECRET, _PREVIOUS = "sealed_secret", "sealed_previous_secret"


class Webhooks(SealedRepository):
    """Webhooks of one transaction."""

    async def add(self, webhook: Webhook, secret: Secret) -> Webhook:
        """Add a webhook with its secret. Raises Failure ALREADY_EXISTS when the name is there."""
        sealed = await self._sealed(webhook, _SECRET, secret)
        values = column_values(webhook, **{_SECRET: sealed, _PREVIOUS: None})
        if not await insert(self._connection, WebhookRow, values):
            raise already_exists(f"Webhook {webhook.name!r}")
        return webhook

    async def get(self, tenant: Tenant, id: WebhookId) -> Webhook | None:
        return await self._one(tenant=tenant, id=id)

    async def by_name(self, tenant: Tenant, name: str) -> Webhook | None:
        return await self._one(tenant=tenant, name=name)

    async def page(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[Webhook]:
        """Webhooks sorted by name, after the name `after`."""
        query = select(WebhookRow).where(columns_equal(WebhookRow, tenant=tenant))
        if after is not None:
            query = query.where(col(WebhookRow.name) > after)
        return await fetch_models(
            self._connection, Webhook, query.order_by(col(WebhookRow.name)).limit(limit)
        )

    async def enabled(self, tenant: Tenant) -> list[Webhook]:
        """Those of the tenant that are not disabled: a handful, or none, in one look at an index."""
        query = select(WebhookRow).where(columns_equal(WebhookRow, tenant=tenant, disabled_by=None))
        return await fetch_models(self._connection, Webhook, query)

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
        query = select(WebhookRow).where(*works, waits)
        return await fetch_models(self._connection, Webhook, query)

    async def replace(self, webhook: Webhook, *, expected: int) -> Webhook:
        """Write it if its row is still at revision `expected`. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        return await self._change(webhook, expected, {})

    async def rotate_secret(self, webhook: Webhook, new: Secret, *, expected: int) -> Webhook:
        """Write a new secret; the previous one stays valid until `previous_secret_until`.

        Raises Failure STORE_CONFLICT, NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        old = await self._opened(webhook, _SECRET)
        kept = old is not None and webhook.previous_secret_until is not None
        sealed: Values = {
            _SECRET: await self._sealed(webhook, _SECRET, new),
            _PREVIOUS: await self._sealed(webhook, _PREVIOUS, old) if old and kept else None,
        }
        return await self._change(webhook, expected, sealed)

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
        gone = await self._connection.execute(
            delete(WebhookRow).where(columns_equal(WebhookRow, tenant=tenant, id=id))
        )
        if gone.rowcount != 1:
            raise Failure(ErrorCode.NOT_FOUND, f"{id} doesn't exist.")
        mine = columns_equal(DeliveryRow, tenant=tenant, webhook_id=id)
        await self._connection.execute(delete(DeliveryRow).where(mine))
        waited_for = exists().where(
            col(DeliveryRow.tenant) == col(EventRow.tenant), col(DeliveryRow.event_id) == col(EventRow.id)
        )
        await self._connection.execute(
            delete(EventRow).where(columns_equal(EventRow, tenant=tenant), ~waited_for)
        )

    async def _change(self, webhook: Webhook, expected: int, sealed: Values) -> Webhook:
        key = {"tenant": webhook.tenant, "id": webhook.id}
        values = column_values(webhook, **sealed)
        revision = await compare_and_set(self._connection, WebhookRow, key, values, expected)
        return webhook.model_copy(update={"revision": revision})

    async def _sealed(self, webhook: Webhook, column: str, secret: Secret) -> Sealed:
        return await self._sealer.seal(KeyPurpose.INTAKE, NO_CONNECTION, _place(webhook, column), secret)

    async def _opened(self, webhook: Webhook, column: str) -> Secret | None:
        row = await find_one(self._connection, WebhookRow, tenant=webhook.tenant, id=webhook.id)
        if row is None or row[column] is None:
            return None
        return await self._sealer.open(KeyPurpose.INTAKE, NO_CONNECTION, _place(webhook, column), row[column])

    async def _one(self, **equal: str) -> Webhook | None:
        return await find_model(self._connection, Webhook, WebhookRow, **equal)


def _place(webhook: Webhook, column: str) -> AssociatedData:
    return AssociatedData(webhook.tenant, "webhook", webhook.id, column)
