"""Events reach a receiver: real store, worker, Temporal and HTTP; the receiver does what the script says."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest_asyncio
from standardwebhooks import Webhook as Judge

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.events import CONNECTION_EVENTS, EventType
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.base import webhook_workflow_id
from evergrant_server.core.webhooks import DeliveryProblem, DeliveryStatus, DisabledBy
from tests.fakes.events.webhook_receiver import Receiver
from tests.fakes.events.webhooks import SECRET, listening, log_of, until_log, until_row
from tests.fakes.platform.installation import TENANT, Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as running:
        yield running


@pytest_asyncio.fixture
async def here(
    temporal_address: str, database_url: str, tmp_path: Path, idp: ScriptedProvider, receiver: Receiver
) -> AsyncIterator[Installation]:
    allow = (idp.allowance, receiver.allowance)
    async with installation(temporal_address, database_url, tmp_path, allow=allow) as place:
        yield place


async def test_the_events_of_a_connection_are_signed_and_complete(
    here: Installation, idp: ScriptedProvider, receiver: Receiver
):
    webhook = await listening(here.store, receiver.url, here.parts.clock.now(), events=CONNECTION_EVENTS)
    connection = await here.connect(idp)
    await here.ensure_fresh(connection, 1)
    await here.revoke(connection)
    await here.until(connection, lambda c: c.state is LifecycleState.REVOKED)
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
    log = await until_log(here.store, webhook, lambda it: all(d.status == "delivered" for d in it))
    assert sorted(it.event_id for it in log) == sorted(it.id for it in receiver.received)


async def test_needs_reauth_names_the_repairer_and_the_route(
    here: Installation, idp: ScriptedProvider, receiver: Receiver
):
    await listening(here.store, receiver.url, here.parts.clock.now())
    connection = await here.connect(idp, RefreshRules(rotation=Rotation.STRICT))
    idp.script(error("invalid_grant"))
    await here.ensure_fresh(connection, 1)
    await receiver.until(2)
    bodies = [json.loads(it.body) for it in receiver.received]
    (lost,) = [it["data"] for it in bodies if it["type"] == EventType.NEEDS_REAUTH]
    assert (lost["reason"], lost["repairer"]) == (ErrorCode.GRANT_REJECTED, "subject")
    assert lost["reauthorize"] == f"/v1/connections/{connection.id}/reauthorize"
    assert "connection.refreshed" not in {it["type"] for it in bodies}, "the webhook did not subscribe to it"


async def test_500s_then_ok_is_delivered_once_under_one_id(
    here: Installation, idp: ScriptedProvider, receiver: Receiver
):
    webhook = await listening(here.store, receiver.url, here.parts.clock.now())
    receiver.script(500)
    await here.connect(idp)
    first, second = await receiver.until(2)
    assert first.id == second.id
    assert first.body == second.body
    Judge(SECRET.reveal()).verify(second.body, second.headers)
    (delivery,) = await until_log(here.store, webhook, lambda it: it[0].status == "delivered")
    assert (delivery.attempts, delivery.response_status, delivery.problem) == (2, 204, None)
    await until_row(here.store, webhook, lambda it: it.failures == 0)


async def test_410_disables_the_webhook(here: Installation, idp: ScriptedProvider, receiver: Receiver):
    webhook = await listening(here.store, receiver.url, here.parts.clock.now())
    receiver.script(410)
    await here.connect(idp)
    (delivery,) = await until_log(here.store, webhook, lambda it: bool(it) and it[0].attempts == 1)
    assert (delivery.status, delivery.problem) == (DeliveryStatus.PENDING, DeliveryProblem.GONE)
    after = await until_row(here.store, webhook, lambda it: it.disabled)
    assert after.disabled_by is DisabledBy.GONE
    records = await here.records(AuditAction.WEBHOOK_DISABLED)
    assert [(it.object, it.detail["disabled_by"], it.context.by) for it in records] == [
        (webhook.id, "gone", "schedule")
    ]


async def test_without_a_subscription_nothing_is_written(
    here: Installation, idp: ScriptedProvider, receiver: Receiver
):
    other = await listening(here.store, receiver.url, here.parts.clock.now(), integration="another")
    off = await listening(
        here.store, receiver.url, here.parts.clock.now(), name="off", disabled_by=DisabledBy.ADMIN
    )
    connection = await here.connect(idp)
    await here.ensure_fresh(connection, 1)
    assert await log_of(here.store, other) == await log_of(here.store, off) == []
    assert receiver.received == []


async def test_a_terminated_delivery_workflow_is_restored_by_reconcile(
    here: Installation, idp: ScriptedProvider, receiver: Receiver
):
    """Terminated in the Temporal UI while its endpoint was down: what waited goes out all the same."""
    webhook = await listening(here.store, receiver.url, here.parts.clock.now())
    receiver.script(500)
    await here.connect(idp)
    await until_row(here.store, webhook, lambda it: it.failures == 1)
    handle = here.parts.client.get_workflow_handle(webhook_workflow_id(TENANT, webhook.id))
    await handle.terminate("by hand")
    (delivery,) = await log_of(here.store, webhook)
    late = here.parts.clock.now() - timedelta(minutes=10)
    async with here.store.write() as tx:
        row = await tx.webhooks.get(TENANT, webhook.id)
        assert row is not None
        await tx.webhooks.replace(row.model_copy(update={"paused_until": late}), expected=row.revision)
        current = await tx.deliveries.get(TENANT, delivery.id)
        assert current is not None
        moved = current.model_copy(update={"next_at": late})
        await tx.deliveries.replace(moved, expected=current.revision)
    await here.parts.reconciler.reconcile_all()
    await until_log(here.store, webhook, lambda it: it[0].status == "delivered")
    assert len(receiver.received) == 2


async def test_a_redirect_is_not_followed(here: Installation, idp: ScriptedProvider, receiver: Receiver):
    webhook = await listening(here.store, receiver.url, here.parts.clock.now())
    receiver.headers["location"] = "http://169.254.169.254/latest"
    receiver.script(307)
    await here.connect(idp)
    (delivery,) = await until_log(here.store, webhook, lambda it: bool(it) and it[0].attempts == 1)
    assert delivery.problem == DeliveryProblem.REDIRECTED
