"""A pass that doesn't fit into one run of the schedule: the next run is told how far it is."""

import asyncio
from datetime import timedelta

from temporalio.client import Client, Schedule, ScheduleActionStartWorkflow, ScheduleSpec

from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.maintenance import AuditCheckpoint, ReconcileRequest, ReconcileResult
from evergrant_server.core.messages.names import ActivityName, WorkflowName
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import a_worker

MARK = AuditCheckpoint(tenant=Tenant("acme"), seq=7, hash="h")
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
        execution_timeout=timedelta(minutes=1),
    )
    schedule = await client.create_schedule("evergrant:long-pass", Schedule(action, spec=ScheduleSpec()))
    async with a_worker(client, scripted.everything(), QUEUE):
        for runs in (1, 2, 3):
            await schedule.trigger()
            async with asyncio.timeout(20):
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
