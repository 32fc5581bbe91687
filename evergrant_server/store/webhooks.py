"""Webhooks with their signing secrets, the events they subscribe to, and the deliveries.

Secrets are sealed by the tenant's intake key: admins make them, workers sign.
"""

from datetime import datetime

from sqlalchemy import (
    JSON,
    ColumnElement,
    Index,
    Text,
    UniqueConstraint,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlmodel import Field, ForeignKeyConstraint, col

from evergrant_server.core.events import WebhookEvent
from evergrant_server.core.ids import DeliveryId, EventId, Tenant, WebhookId
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhooks import MASK, Delivery, DeliveryStatus, DisabledBy, Webhook, masked_url
from evergrant_server.crypto import KeyRing, Sealed
from evergrant_server.store.authority.authenticators import AuthenticatedRepository, authentic, row_mac
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    ModelRepository,
    column_values,
    columns_equal,
    find_one,
    insert,
)
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository


class WebhookRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "id", unique=True))
    name: str
    url: str  # with a mask in place of its query
    sealed_query: Sealed | None = columns.sealed(columns.BY_INTAKE)
    events: list[str] = Field(sa_type=JSON)
    integration: str
    disabled_by: str | None = None
    failures: int
    failing_since: datetime | None = columns.timestamp()
    paused_until: datetime | None = columns.timestamp()
    sealed_secret: Sealed = columns.sealed(columns.BY_INTAKE)
    sealed_previous_secret: Sealed | None = columns.sealed(columns.BY_INTAKE)
    previous_secret_until: datetime | None = columns.timestamp()
    secret_changed_at: datetime = columns.timestamp()
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class EventRow(columns.IdTable, table=True):
    __table_args__ = (
        Index(None, "tenant", "at"),
        columns.partial_index(
            "ix_event_connection", "tenant", "connection_id", where="connection_id IS NOT NULL"
        ),
    )
    type: str
    connection_id: str | None = None
    at: datetime = columns.timestamp()
    body: str = Field(sa_type=Text)  # as it is signed and sent
    mac: str | None = None


class DeliveryRow(columns.IdTable, table=True):
    """No foreign key to the webhook: a commit of an event must not wait for a change of a webhook."""

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "event_id"], ["event.tenant", "event.id"]),
        Index(None, "tenant", "event_id"),
        Index(None, "tenant", "webhook_id", "created_at", "id"),
        columns.partial_index(
            "ix_delivery_pending", "tenant", "webhook_id", "by_hand", "next_at", where="status = 'pending'"
        ),
    )
    webhook_id: str
    event_id: str
    event_type: str
    status: str
    by_hand: bool
    attempts: int
    tries: int
    response_status: int | None = None
    problem: str | None = None
    next_at: datetime | None = columns.timestamp()
    created_at: datetime = columns.timestamp()
    ended_at: datetime | None = columns.timestamp()


_SECRET, _PREVIOUS, _QUERY = "sealed_secret", "sealed_previous_secret", "sealed_query"

_WAITED_FOR = exists().where(
    col(DeliveryRow.tenant) == col(EventRow.tenant), col(DeliveryRow.event_id) == col(EventRow.id)
)


class Webhooks(IntakeRepository[Webhook, WebhookId], AuthenticatedRepository[Webhook, WebhookId]):
    _table, _model = WebhookRow, Webhook

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def add(self, webhook: Webhook, secret: Secret) -> Webhook:
        """Add a webhook with its secret and its whole URL, and return it with the masked one.

        Raises Failure ALREADY_EXISTS when the name is there.
        """
        masked, query = masked_url(webhook.url)
        sealed = await self._sealed(webhook, {_SECRET: secret, _QUERY: query})
        stored = webhook.__replace__(url=masked)
        return await self._add(stored, f"Webhook {webhook.name!r}", **sealed)

    async def replace_with_url(self, webhook: Webhook, url: str, *, expected: int) -> Webhook:
        """As `replace`, with another URL."""
        masked, query = masked_url(url)
        sealed = await self._sealed(webhook, {_QUERY: query})
        return await self._change(webhook.__replace__(url=masked), expected, **sealed)

    async def whole_url(self, webhook: Webhook) -> Secret:
        """The URL with its query. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        query = await self._opened(webhook, _QUERY)
        return Secret(webhook.url if query is None else webhook.url.removesuffix(MASK) + query.reveal())

    async def by_name(self, tenant: Tenant, name: str) -> Webhook | None:
        return await self._one(tenant=tenant, name=name)

    async def by_name_unchecked(self, tenant: Tenant, name: str) -> Webhook | None:
        """The webhook as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant, name=name)

    async def page(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[Webhook]:
        """Webhooks sorted by name, after the name `after`. Not checked."""
        return await self._page(self._where(tenant=tenant), "name", after, limit)

    async def enabled(self, tenant: Tenant) -> list[Webhook]:
        """Those of the tenant that are not disabled: a handful, or none, in one look at an index. Not
        checked: a broken one stops no audit record, and the worker checks it before it sends anything."""
        return await self._all_unchecked(self._where(tenant=tenant, disabled_by=None))

    async def failing(self, limit: int) -> list[Webhook]:
        """Those of every tenant whose last delivery failed, or that were disabled for that. Not checked."""
        ended = col(WebhookRow.disabled_by).in_((DisabledBy.GONE.value, DisabledBy.FAILING.value))
        fails = col(WebhookRow.disabled_by).is_(None) & (col(WebhookRow.failures) > 0)
        return await self._all_unchecked(self._where(or_(ended, fails)).limit(limit))

    async def with_overdue_deliveries(self, before: datetime) -> list[Webhook]:
        """Those of every tenant that should have been sent something before this moment. Not checked."""
        paused_until = col(WebhookRow.paused_until)
        waits = exists().where(
            col(DeliveryRow.tenant) == col(WebhookRow.tenant),
            col(DeliveryRow.webhook_id) == col(WebhookRow.id),
            col(DeliveryRow.status) == DeliveryStatus.PENDING.value,
            col(DeliveryRow.next_at) < before,
        )
        works = col(WebhookRow.disabled_by).is_(None), or_(paused_until.is_(None), paused_until < before)
        return await self._all_unchecked(self._where(*works, waits))

    async def rotate_secret(self, webhook: Webhook, new: Secret, *, expected: int) -> Webhook:
        """Write a new secret; the previous one stays valid until `previous_secret_until`.

        Raises Failure STORE_CONFLICT, NOT_FOUND, SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        old = await self._opened(webhook, _SECRET)
        kept = None if webhook.previous_secret_until is None else old
        sealed = await self._sealed(webhook, {_SECRET: new, _PREVIOUS: kept})
        return await self._change(webhook, expected, **sealed)

    async def forget_previous_secret(self, webhook: Webhook, *, expected: int) -> Webhook:
        """Sign with the current secret alone. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        return await self._change(webhook, expected, **{_PREVIOUS: None})

    async def signing_secrets(self, webhook: Webhook, now: datetime) -> tuple[Secret, ...]:
        """The secrets that sign messages now: the current one and, during a rotation, the previous one.

        Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        current = await self._opened(webhook, _SECRET)
        until = webhook.previous_secret_until
        previous = None if until is None or now >= until else await self._opened(webhook, _PREVIOUS)
        return tuple(secret for secret in (current, previous) if secret is not None)

    async def delete(self, tenant: Tenant, id: WebhookId) -> None:
        """Delete it with its secrets and its deliveries. Raises Failure NOT_FOUND."""
        await self._delete(id, tenant=tenant, id=id)
        await self._run(delete(DeliveryRow).where(columns_equal(DeliveryRow, tenant=tenant, webhook_id=id)))
        await self._run(delete(EventRow).where(columns_equal(EventRow, tenant=tenant), ~_WAITED_FOR))


_PRUNED_AT_ONCE = 500


class Deliveries(ModelRepository[Delivery, DeliveryId]):
    """Deliveries, and their events, which have authenticators: a webhook's receiver acts on them."""

    _table, _model = DeliveryRow, Delivery

    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def add_event(self, event: WebhookEvent) -> bool:
        """Add an event; False when it is there already."""
        return await insert(self._connection, EventRow, column_values(event, mac=row_mac(self._ring, event)))

    async def event(self, tenant: Tenant, id: EventId) -> WebhookEvent | None:
        """The event. Raises Failure AUTHORITY_BROKEN."""
        row = await find_one(self._connection, EventRow, tenant=tenant, id=id)
        return None if row is None else authentic(self._ring, WebhookEvent, EventRow, row)

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

    async def newest_refusal(self, webhook: Webhook) -> Delivery | None:
        """The newest delivery that its receiver didn't take when it was last tried."""
        mine = self._where(tenant=webhook.tenant, webhook_id=webhook.id)
        refused = mine.where(col(DeliveryRow.problem).is_not(None))
        return await self._first(refused.order_by(col(DeliveryRow.created_at).desc()))

    async def count_failed(self, webhook: Webhook) -> int:
        """How many deliveries were given up."""
        failed = select(func.count()).select_from(DeliveryRow).where(_failed(webhook))
        return (await self._connection.execute(failed)).scalar_one()

    async def replay_failed(self, webhook: Webhook, now: datetime, limit: int) -> int:
        """Make the oldest deliveries that were given up due now. Returns how many."""
        order = col(DeliveryRow.created_at)
        oldest = select(col(DeliveryRow.id)).where(_failed(webhook)).order_by(order).limit(limit)
        due = update(DeliveryRow).where(_failed(webhook), col(DeliveryRow.id).in_(oldest))
        pending = {"status": DeliveryStatus.PENDING.value, "by_hand": True, "tries": 0, "next_at": now}
        revision = col(DeliveryRow.revision) + 1
        return await self._run(due.values(**pending, ended_at=None, revision=revision))

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
        of_tenant = columns_equal(EventRow, tenant=tenant)
        over = of_tenant & (col(EventRow.at) < before) & ~_WAITED_FOR
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


def _failed(webhook: Webhook) -> ColumnElement[bool]:
    failed = DeliveryStatus.FAILED.value
    return columns_equal(DeliveryRow, tenant=webhook.tenant, webhook_id=webhook.id, status=failed)


def _pending(webhook: Webhook, by_hand: bool) -> ColumnElement[bool]:
    waits = columns_equal(DeliveryRow, tenant=webhook.tenant, webhook_id=webhook.id, by_hand=by_hand)
    return waits & (col(DeliveryRow.status) == DeliveryStatus.PENDING.value)
