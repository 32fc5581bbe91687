"""Passes, rollouts and deliveries: each has a workflow of its own, with its waits, its rounds and its end."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import Client, Schedule, ScheduleActionStartWorkflow, ScheduleSpec

from evergrant_server.core import webhooks as core
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import WebhookId, new_id
from evergrant_server.core.messages.activities import ReplacedRevocationResult
from evergrant_server.core.messages.decisions import DecisionProgress
from evergrant_server.core.messages.maintenance import (
    AuditCheckpoint,
    DeliveryRound,
    ReconcileRequest,
    ReconcileResult,
)
from evergrant_server.core.messages.names import ActivityName, WorkflowName, webhook_workflow_id
from evergrant_server.temporal_link.received import DATA_CONVERTER
from tests.fakes.patience import PATIENCE_S
from tests.fakes.scripted_activities import ScriptedActivities
from tests.fakes.temporal import skipping_time
from tests.workflows.connection_runs import a_worker, until_called
from tests.workflows.maintenance_runs import (
    FOREVER,
    TENANT,
    ScriptedRollout,
    approving_call,
    decided,
    delivering,
    requesting_access,
    retrying,
    revoking_replaced,
    running_rollout,
    wanted_back,
)

MARK = AuditCheckpoint(tenant=TENANT, seq=7, hash="h")
QUEUE = "queue-long-pass"


async def test_the_next_run_goes_on_where_the_last_one_stopped_until_the_end(client: Client):
    scripted = ScriptedActivities()
    half = ReconcileResult(live=200, behind=1, comparing=True, after="con_200", audit_checkpoint=MARK)
    whole = half.model_copy(update={"live": 300, "after": None})
    scripted.answers[ActivityName.RECONCILE] += [half, whole]
    action = ScheduleActionStartWorkflow(
        WorkflowName.RECONCILE,
        ReconcileRequest(),
        id="evergrant:long-pass",
        task_queue=QUEUE,
        execution_timeout=timedelta(minutes=5),
    )
    schedule = await client.create_schedule("evergrant:long-pass", Schedule(action, spec=ScheduleSpec()))
    async with a_worker(client, scripted.everything(), QUEUE):
        for runs in (1, 2, 3):
            await schedule.trigger()
            async with asyncio.timeout(PATIENCE_S):
                while (await schedule.describe()).info.num_actions < runs or await under_way(client):
                    await asyncio.sleep(0.05)
    await schedule.delete()
    orders = [order for name, order in scripted.calls if name == ActivityName.RECONCILE]
    assert [order.so_far for order in orders] == [None, half, None]
    assert [order.audit_checkpoint for order in orders] == [None, MARK, MARK]


async def under_way(client: Client) -> bool:
    query = f"TaskQueue = '{QUEUE}'"
    found = [it async for it in client.list_workflows(query)]
    return any(it.close_time is None for it in found)


WAITING, STAGED, ACTIVE = DefinitionState.WAITING, DefinitionState.STAGED, DefinitionState.ACTIVE


def done(scripted: ScriptedRollout) -> list[str]:
    return [what for what, _ in scripted.orders]


async def test_an_unsound_definition_needs_no_decision(client: Client):
    scripted = ScriptedRollout(DefinitionState.UNSOUND)
    async with running_rollout(client, scripted) as handle:
        assert (await handle.result()).state is DefinitionState.UNSOUND
    assert done(scripted) == ["check"]


async def test_an_admins_roll_back_does_not_wait_for_the_next_look(client: Client):
    scripted = ScriptedRollout(WAITING, STAGED)
    async with running_rollout(client, scripted, watch_s=FOREVER) as handle:
        await decided(handle)
        await wanted_back(handle)
        assert (await handle.result()).state is DefinitionState.ROLLED_BACK
    assert scripted.orders[-1][1].roll_back == "support tickets"


async def test_a_month_without_a_decision_rejects_the_definition():
    scripted = ScriptedRollout(WAITING)
    async with (
        skipping_time(data_converter=DATA_CONVERTER) as env,
        running_rollout(env.client, scripted) as handle,
    ):
        assert (await handle.result()).state is DefinitionState.REJECTED
    assert scripted.orders[-1][1].overdue


ADVANCE = ActivityName.ADVANCE_ACCESS_REQUEST


async def test_a_request_for_access_is_looked_at_when_its_moments_come_and_when_it_is_decided():
    scripted = ScriptedActivities()
    waits = DecisionProgress(state="waiting", next_s=86_400)
    approved = DecisionProgress(state="approved", next_s=3600)
    scripted.answers[ADVANCE] = [waits, waits, approved, DecisionProgress(state="ended")]
    async with (
        skipping_time(data_converter=DATA_CONVERTER) as env,
        requesting_access(env.client, scripted.everything()) as advanced,
    ):
        await advanced()
        await env.sleep(timedelta(days=1.5))  # a reminder
        handle = await advanced()  # decided
        assert (await handle.result()).state == "ended"
        described = await handle.describe()
    assert scripted.count(ADVANCE) == 4
    assert described.close_time is not None
    lasted = described.close_time - described.start_time
    assert timedelta(days=1.5, hours=1) <= lasted < timedelta(days=2), (
        "a decision doesn't wait for a reminder"
    )


async def test_an_agents_call_is_looked_at_when_its_moments_come_and_when_it_is_decided():
    scripted, advance = ScriptedActivities(), ActivityName.ADVANCE_CALL_APPROVAL
    waits = DecisionProgress(state="waiting", next_s=86_400)
    approved = DecisionProgress(state="approved", next_s=86_400)
    scripted.answers[advance] = [waits, waits, approved, DecisionProgress(state="expired")]
    async with (
        skipping_time(data_converter=DATA_CONVERTER) as env,
        approving_call(env.client, scripted.everything()) as advanced,
    ):
        await advanced()
        await env.sleep(timedelta(days=1.5))  # a reminder
        handle = await advanced()  # approved, and not used
        assert (await handle.result()).state == "expired"
    assert scripted.count(advance) == 4


DELIVER = ActivityName.DELIVER_WEBHOOKS


async def test_it_ends_when_nothing_has_waited_for_a_while():
    scripted = ScriptedActivities()
    async with skipping_time(data_converter=DATA_CONVERTER) as env:
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
    async with skipping_time(data_converter=DATA_CONVERTER) as env:
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


RETRY = ActivityName.RETRY_CONNECTIONS


async def test_changes_while_failing_connections_are_told_lead_to_one_more_walk(client: Client):
    scripted = ScriptedActivities()
    hold = asyncio.Event()
    scripted.answers[RETRY] = [hold]
    async with retrying(client, scripted.everything()) as changed:
        first, newest = new_id("out"), new_id("out")
        handle = await changed(first)
        await until_called(scripted, RETRY)
        for id in (*(new_id("out") for _ in range(19)), newest):
            await changed(id)
        hold.set()
        await handle.result()
    assert [order.id for _, order in scripted.calls] == [first, newest]


async def test_a_change_that_is_delivered_twice_is_walked_for_once(client: Client):
    scripted = ScriptedActivities()
    hold = asyncio.Event()
    scripted.answers[RETRY] = [hold]
    async with retrying(client, scripted.everything()) as changed:
        handle = await changed("out_1")
        await until_called(scripted, RETRY)
        await changed("out_1")
        hold.set()
        await handle.result()
    assert scripted.count(RETRY) == 1


REVOKE_REPLACED = ActivityName.REVOKE_REPLACED_GRANTS


async def test_a_grant_that_is_replaced_meanwhile_is_revoked_by_the_same_run(client: Client):
    """It ends the wait for the next try, and is seen when it comes during one."""
    scripted = ScriptedActivities()
    hold = asyncio.Event()
    failed = ReplacedRevocationResult(failure=ErrorCode.PROVIDER_ERROR, retry_after=3600)
    scripted.answers[REVOKE_REPLACED] = [failed, hold]
    async with revoking_replaced(client, scripted.everything()) as replaced:
        handle = await replaced()
        await until_called(scripted, REVOKE_REPLACED)
        await replaced()
        await until_called(scripted, REVOKE_REPLACED, 2)
        await replaced()
        hold.set()
        assert (await handle.result()).failure is None
    assert scripted.count(REVOKE_REPLACED) == 3
