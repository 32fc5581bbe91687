"""The workflow that delivers to a webhook: its waits, its rounds and its end."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from evergrant_server.core import webhooks as core
from evergrant_server.core.ids import Tenant, WebhookId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import ActivityName, webhook_workflow_id
from evergrant_server.core.messages.webhooks import DeliveryRound
from tests.fakes.scripted_activities import ScriptedActivities
from tests.fakes.temporal import skipping_time
from tests.workflows.connection_runs import until_called
from tests.workflows.webhook_runs import delivering

ASKED = RequestContext(by="app:boss")
TENANT = Tenant("acme")
DELIVER = ActivityName.DELIVER_WEBHOOKS


async def test_it_ends_when_nothing_has_waited_for_a_while():
    scripted = ScriptedActivities()
    async with skipping_time(data_converter=pydantic_data_converter) as env:
        scripted.answers[DELIVER] = [DeliveryRound(delivered=3), DeliveryRound(delivered=1, failed=1)]
        async with delivering(env.client, scripted.everything()) as told:
            began = await env.get_current_time()
            handle = await told.wake()
            assert await handle.result() == DeliveryRound(delivered=3)
            assert await env.get_current_time() - began >= core.IDLE_TIMEOUT
            again = await told.wake()
            assert (await again.result()).delivered == 1


async def test_a_worker_whose_clock_is_behind_does_not_run_rounds_without_a_pause():
    """Its next moment is over by Temporal's clock: what counts is how long it is until then."""
    scripted = ScriptedActivities()
    async with skipping_time(data_converter=pydantic_data_converter) as env:
        behind = await env.get_current_time() - timedelta(hours=1)
        waits = DeliveryRound(next_at=behind, wait_s=60)
        scripted.answers[DELIVER] = [waits, waits, DeliveryRound()]
        async with delivering(env.client, scripted.everything()) as told:
            handle = await told.wake()
            await handle.result()
            timers = [
                event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
                for event in (await handle.fetch_history()).events
                if event.HasField("timer_started_event_attributes")
            ]
            assert timers == [timedelta(minutes=1), timedelta(minutes=1), core.IDLE_TIMEOUT]


async def test_an_endpoint_in_a_pause_is_not_looked_at_for_each_event_but_for_a_person(client: Client):
    scripted = ScriptedActivities()
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    paused = DeliveryRound(failed=1, next_at=in_an_hour, paused=True)
    scripted.answers[DELIVER] = [paused, paused]
    async with delivering(client, scripted.everything()) as told:
        await told.wake()
        await until_called(scripted, DELIVER, 1)
        for _ in range(20):
            await told.wake()
        handle = await told.wake(at_once=True)
        await until_called(scripted, DELIVER, 2)
        await told.wake()
        await handle.terminate("seen enough")
        assert scripted.count(DELIVER) <= 3, "one at first, one for the person; one may cross a signal"


async def test_events_while_it_delivers_lead_to_another_round(client: Client):
    scripted = ScriptedActivities()
    hold = asyncio.Event()
    scripted.answers[DELIVER] = [hold]
    async with delivering(client, scripted.everything()) as told:
        handle = await told.wake()
        await until_called(scripted, DELIVER, 1)
        for _ in range(30):
            await told.wake()
        hold.set()
        await until_called(scripted, DELIVER, 2)
        await asyncio.sleep(0)
        assert scripted.count(DELIVER) == 2, "thirty messages, one look"
        await handle.terminate("seen enough")


async def test_a_long_run_continues_as_new(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(core, "LONGEST_HISTORY", 40)
    scripted = ScriptedActivities()
    scripted.answers[DELIVER] = [DeliveryRound(delivered=1, next_at=datetime.now(UTC)) for _ in range(20)]
    webhook = WebhookId(new_id("whk"))
    async with delivering(client, scripted.everything(), webhook) as told:
        first = await told.wake()
        await until_called(scripted, DELIVER, 21)
        newest = await client.get_workflow_handle(webhook_workflow_id(TENANT, webhook)).describe()
        await client.get_workflow_handle(webhook_workflow_id(TENANT, webhook)).terminate("seen enough")
    assert newest.run_id != first.first_execution_run_id
    assert newest.history_length < 80
