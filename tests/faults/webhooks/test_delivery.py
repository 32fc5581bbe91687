"""Events reach a receiver: real store, worker, Temporal and HTTP; the receiver does what the script says."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from standardwebhooks import Webhook as Judge

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.events import CONNECTION_EVENTS
from evergrant_server.core.messages.names import webhook_workflow_id
from evergrant_server.core.webhooks import DeliveryProblem, DeliveryStatus, DisabledBy
from tests.fakes.events.webhook_receiver import SECRET, Receiver, listening, log_of, until_log, until_row
from tests.fakes.platform.installation import TENANT, Installation


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as running:
        yield running


@pytest.fixture
def allow(receiver: Receiver) -> tuple[str, ...]:
    return (receiver.allowance,)


async def test_the_events_of_a_connection_are_signed_and_complete(place: Installation, receiver: Receiver):
    webhook = await listening(place.store, receiver.url, place.parts.clock.now(), events=CONNECTION_EVENTS)
    connection = await place.connect()
    await place.ensure_fresh(connection, 1)
    await place.revoked(connection)
    await receiver.until(3)
    told = {}
    for message in receiver.received:
        body = Judge(SECRET.reveal()).verify(message.body, message.headers)
        told[body["type"]] = body["data"]
        assert message.headers["content-type"] == "application/json"
    assert set(told) == {"connection.created", "connection.refreshed", "connection.revoked"}
    created = told["connection.created"]
    assert (created["connection_id"], created["subject"]) == (connection.id, "user-1")
    assert (created["state"], created["generation"], created["reauthorize"]) == ("active", 1, None)
    assert told["connection.refreshed"]["generation"] == 2
    assert told["connection.revoked"]["revocation"] == "confirmed"
    log = await until_log(place.store, webhook, lambda it: all(d.status == "delivered" for d in it))
    assert sorted(it.event_id for it in log) == sorted(it.id for it in receiver.received)


async def test_410_disables_the_webhook(place: Installation, receiver: Receiver):
    webhook = await listening(place.store, receiver.url, place.parts.clock.now())
    receiver.script(410)
    await place.connect()
    (delivery,) = await until_log(place.store, webhook, lambda it: bool(it) and it[0].attempts == 1)
    assert (delivery.status, delivery.problem) == (DeliveryStatus.PENDING, DeliveryProblem.GONE)
    after = await until_row(place.store, webhook, lambda it: it.disabled)
    assert after.disabled_by is DisabledBy.GONE
    records = await place.records(AuditAction.WEBHOOK_DISABLED)
    assert [(it.object, it.detail["disabled_by"], it.context.by) for it in records] == [
        (webhook.id, "gone", "schedule")
    ]


async def test_a_terminated_delivery_workflow_is_restored_by_reconcile(
    place: Installation, receiver: Receiver
):
    """Terminated in the Temporal UI while its endpoint was down: what waited goes out all the same."""
    webhook = await listening(place.store, receiver.url, place.parts.clock.now())
    receiver.script(500)
    await place.connect()
    await until_row(place.store, webhook, lambda it: it.failures == 1)
    handle = place.parts.client.get_workflow_handle(webhook_workflow_id(TENANT, webhook.id))
    await handle.terminate("by hand")
    (delivery,) = await log_of(place.store, webhook)
    late = place.parts.clock.now() - timedelta(minutes=10)
    async with place.store.write() as tx:
        row = await tx.webhooks.get(TENANT, webhook.id)
        assert row is not None
        await tx.webhooks.replace(row.model_copy(update={"paused_until": late}), expected=row.revision)
        current = await tx.deliveries.get(TENANT, delivery.id)
        assert current is not None
        moved = current.model_copy(update={"next_at": late})
        await tx.deliveries.replace(moved, expected=current.revision)
    await place.parts.reconciler.reconcile_all()
    await until_log(place.store, webhook, lambda it: it[0].status == "delivered")
    assert len(receiver.received) == 2


async def test_a_redirect_is_not_followed(place: Installation, receiver: Receiver):
    webhook = await listening(place.store, receiver.url, place.parts.clock.now())
    receiver.headers["location"] = "http://169.254.169.254/latest"
    receiver.script(307)
    await place.connect()
    (delivery,) = await until_log(place.store, webhook, lambda it: bool(it) and it[0].attempts == 1)
    assert delivery.problem == DeliveryProblem.REDIRECTED
