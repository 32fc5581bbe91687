"""Webhooks, events and deliveries: what is due, in which order, for how long; and whose secret it is."""

from datetime import datetime, timedelta

from sqlalchemy import text

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.events import CONNECTION_EVENTS, EventType, WebhookEvent
from evergrant_server.core.ids import EventId, Tenant, new_id
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.webhook_signatures import new_signing_secret
from evergrant_server.core.webhooks import Delivery, DeliveryProblem, DeliveryStatus, DisabledBy, Webhook
from evergrant_server.store import Store
from tests.conformance.store.samples import granted
from tests.fakes.databases import NOW
from tests.fakes.events.webhook_receiver import SECRET, TENANT, a_webhook, listening, log_of
from tests.fakes.failures import fails

URL = "https://hooks.example.com/in"
ASKED = RequestContext(by="app:boss")
OTHER = Tenant("acme-2")


def an_event(tenant: Tenant, at: datetime) -> WebhookEvent:
    ping, id = EventType.PING, EventId(new_id("evt"))
    return WebhookEvent(tenant=tenant, id=id, type=ping, connection_id=None, at=at, body="{}")


async def told(store: Store, webhook: Webhook, *, after: float = 0, by_hand: bool = False) -> Delivery:
    """One event of its own, on its way to the webhook."""
    at = NOW + timedelta(seconds=after)
    event = an_event(webhook.tenant, at)
    async with store.write() as tx:
        (delivery,) = await audit.write_event(tx, [webhook], event, ASKED, at, by_hand=by_hand)
    return delivery


async def due(store: Store, webhook: Webhook, after: float = 0, *, by_hand: bool = False) -> list[str]:
    async with store.read() as tx:
        found = await tx.deliveries.due(webhook, NOW + timedelta(seconds=after), 10, by_hand=by_hand)
    return [it.id for it in found]


async def recorded(
    store: Store, object: str, action: AuditAction, *, by: Provenance | None = None, **detail: object
) -> None:
    entry = AuditEntry(
        tenant=TENANT, at=NOW, action=action, object=object, context=ASKED, detail=detail, provenance=by
    )
    async with store.write() as tx:
        await audit.append(tx, entry)


async def test_a_sealed_secret_opens_in_no_other_column_or_row(store: Store):
    """AAD names row and column: the secret before can't be put back as the current one."""
    webhook = await listening(store, URL, NOW)
    await listening(store, URL, NOW, name="other")
    async with store.write() as tx:
        overlapping = webhook.model_copy(update={"previous_secret_until": NOW + timedelta(hours=1)})
        webhook = await tx.webhooks.rotate_secret(overlapping, new_signing_secret(b"n" * 32), expected=1)
    mine = "UPDATE webhook SET sealed_secret = {} WHERE name = 'hooks'"
    for put_there in ("sealed_previous_secret", "(SELECT sealed_secret FROM webhook WHERE name = 'other')"):
        async with store.write() as tx:
            await tx.connection.execute(text(mine.format(put_there)))
            with fails(ErrorCode.SEAL_BROKEN):
                await tx.webhooks.signing_secrets(webhook, NOW)


async def test_names_are_per_tenant(store: Store):
    await listening(store, URL, NOW)
    theirs = await listening(store, URL, NOW, tenant=OTHER)
    async with store.write() as tx:
        with fails(ErrorCode.ALREADY_EXISTS):
            await tx.webhooks.add(a_webhook(URL, NOW), SECRET)
        assert await tx.webhooks.get(TENANT, theirs.id) is None
        assert [it.tenant for it in await tx.webhooks.enabled(OTHER)] == [OTHER]


async def test_what_is_due_longest_overdue_first_and_by_hand_apart(store: Store):
    webhook = await listening(store, URL, NOW)
    late = await told(store, webhook, after=5)
    first = await told(store, webhook)
    asked_for = await told(store, webhook, after=3, by_hand=True)
    assert await due(store, webhook, 4) == [first.id]
    assert await due(store, webhook, 6) == [first.id, late.id]
    assert await due(store, webhook, 2, by_hand=True) == []
    assert await due(store, webhook, 3, by_hand=True) == [asked_for.id]
    async with store.write() as tx:
        done = first.delivered(204, NOW)
        await tx.deliveries.replace(done, expected=1)
        assert await tx.deliveries.next_at(webhook, by_hand=False) == late.next_at
        with fails(ErrorCode.STORE_CONFLICT):
            await tx.deliveries.replace(first.failed(500, DeliveryProblem.REFUSED, NOW), expected=1)
    assert await due(store, webhook, 6) == [late.id]


async def test_whose_deliveries_are_late(store: Store):
    late = await listening(store, URL, NOW, name="late")
    paused = await listening(store, URL, NOW, name="paused", paused_until=NOW + timedelta(hours=1))
    disabled = await listening(store, URL, NOW, name="off", disabled_by=DisabledBy.GONE)
    theirs = await listening(store, URL, NOW, tenant=OTHER)
    done = await listening(store, URL, NOW, name="done")
    for webhook in (late, paused, disabled, theirs):
        await told(store, webhook)
    delivery = await told(store, done)
    async with store.write() as tx:
        await tx.deliveries.replace(delivery.delivered(200, NOW), expected=1)

    async def overdue(after: float) -> set[str]:
        async with store.read() as tx:
            return {it.id for it in await tx.webhooks.with_overdue_deliveries(NOW + timedelta(seconds=after))}

    assert await overdue(0) == set()
    assert await overdue(1) == {late.id, theirs.id}
    assert await overdue(3601) == {late.id, theirs.id, paused.id}


async def test_the_log_is_newest_first_in_pages(store: Store):
    webhook = await listening(store, URL, NOW)
    other = await listening(store, URL, NOW, name="other")
    written = [await told(store, webhook, after=n // 2) for n in range(6)]
    await told(store, other)
    expected = sorted(written, key=lambda it: (it.created_at, it.id), reverse=True)
    seen: list[Delivery] = []
    while True:
        async with store.read() as tx:
            after = (seen[-1].created_at, seen[-1].id) if seen else None
            page = await tx.deliveries.page(TENANT, webhook.id, after=after, limit=4)
        seen += page
        if len(page) < 4:
            break
    assert seen == expected
    async with store.read() as tx:
        assert await tx.deliveries.page(TENANT, webhook.id, status=DeliveryStatus.FAILED) == []


async def test_old_deliveries_go_and_their_events_once_nobody_waits(store: Store):
    webhook = await listening(store, URL, NOW)
    other = await listening(store, URL, NOW, name="other")
    event = an_event(TENANT, NOW)
    async with store.write() as tx:
        await audit.write_event(tx, [webhook, other], event, ASKED, NOW)
    recent = await told(store, webhook, after=100)
    before = NOW + timedelta(seconds=50)
    async with store.write() as tx:
        old = {(TENANT, it.id) for it in (webhook, other)}
        assert set(await tx.deliveries.webhooks_with_deliveries_before(before)) == old
        assert await tx.deliveries.prune(TENANT, webhook.id, before) == 1
        assert await tx.deliveries.webhooks_with_deliveries_before(before) == [(TENANT, other.id)]
        assert await tx.deliveries.event(TENANT, event.id) is not None, "the other one still waits for it"
        assert await tx.deliveries.prune(TENANT, other.id, before) == 1
        assert await tx.deliveries.event(TENANT, event.id) is None
        assert await tx.deliveries.event(TENANT, recent.event_id) is not None
    assert [it.id for it in await log_of(store, webhook)] == [recent.id]


async def test_deleting_a_webhook_takes_what_waited_with_it(store: Store):
    webhook = await listening(store, URL, NOW)
    other = await listening(store, URL, NOW, name="other")
    gone, stays = await told(store, webhook), await told(store, other)
    async with store.write() as tx:
        await tx.webhooks.delete(TENANT, webhook.id)
        assert await tx.deliveries.event(TENANT, gone.event_id) is None
        assert await tx.deliveries.event(TENANT, stays.event_id) is not None
        with fails(ErrorCode.NOT_FOUND):
            await tx.webhooks.delete(TENANT, webhook.id)
    assert await log_of(store, webhook) == []


async def test_an_activity_that_is_tried_again_after_its_commit_tells_nothing_twice(store: Store):
    """Its record may be there twice; the decision behind it, and so the event, is one."""
    webhook = await listening(store, URL, NOW)
    connection = await granted(store, tenant=TENANT)
    decided = Provenance(workflow_id="connection:acme:con_1", run_id="run", event_id=17)
    for by, events in ((decided, 1), (decided, 1), (decided.model_copy(update={"event_id": 31}), 2)):
        await recorded(store, connection.id, AuditAction.CONNECTION_EXPIRING, by=by, days=14)
        assert len(await log_of(store, webhook)) == events


async def test_nobody_is_told_what_they_did_not_ask_for(store: Store):
    connection = await granted(store, tenant=TENANT)
    deaf = [
        await listening(store, URL, NOW, name="other-events", events=(EventType.REVOKED,)),
        await listening(
            store, URL, NOW, name="other-integration", integration="nobody", events=CONNECTION_EVENTS
        ),
        await listening(store, URL, NOW, name="off", disabled_by=DisabledBy.ADMIN, events=CONNECTION_EVENTS),
        await listening(store, URL, NOW, name="other-tenant", tenant=OTHER, events=CONNECTION_EVENTS),
    ]
    await recorded(store, connection.id, AuditAction.GRANT_REFRESHED, generation=2)
    for webhook in deaf:
        assert await log_of(store, webhook) == []
    async with store.write() as tx:
        assert await tx.outbox.claim("relay", NOW, timedelta(seconds=30)) == []
