"""What recurs: declared once, restored when deleted, left alone when paused, and it does its work."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import ScheduleActionStartWorkflow, ScheduleDescription, ScheduleOverlapPolicy
from temporalio.service import RPCError

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor import temporal as doctor_temporal
from evergrant_server.core.messages.jobs import RECONCILE
from evergrant_server.temporal_link.schedules import declare_schedules, schedule_id
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import Installation


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"reconcile_interval": timedelta(seconds=2)}


async def described(place: Installation) -> ScheduleDescription:
    """The schedule, once the worker has declared it."""
    handle = place.parts.client.get_schedule_handle(schedule_id(place.parts.settings, RECONCILE))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await handle.describe()
            except RPCError:
                await asyncio.sleep(0.05)


async def test_a_worker_declares_the_schedules(place: Installation):
    found = await described(place)
    action = found.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    assert (action.workflow, action.task_queue) == (
        "reconcile",
        place.parts.settings.temporal_task_queue,
    )
    assert found.schedule.spec.intervals[0].every == timedelta(seconds=2)
    assert found.schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
    assert "not paused" in await doctor_temporal.schedules(place.parts.settings)


async def test_declaring_again_updates_only_the_interval(place: Installation):
    # of a task queue without a worker, which would set its own interval again between the two looks
    own = place.parts.settings.model_copy(update={"temporal_task_queue": f"unpolled-{uuid4().hex}"})
    handle = place.parts.client.get_schedule_handle(schedule_id(own, RECONCILE))
    await declare_schedules(place.parts.client, own)
    before = await handle.describe()
    await declare_schedules(place.parts.client, own)
    assert (await handle.describe()).info.last_updated_at == before.info.last_updated_at
    slower = own.model_copy(update={"reconcile_interval": timedelta(minutes=7)})
    await declare_schedules(place.parts.client, slower)
    assert (await handle.describe()).schedule.spec.intervals[0].every == timedelta(minutes=7)


async def test_a_deleted_schedule_is_restored(place: Installation):
    handle = place.parts.client.get_schedule_handle((await described(place)).id)
    await handle.delete()
    with pytest.raises(CheckFailed, match="reconcile"):
        await doctor_temporal.schedules(place.parts.settings)
    await described(place)  # the worker looks again by itself


async def test_a_paused_schedule_stays_paused_and_the_doctor_reports_it(place: Installation):
    handle = place.parts.client.get_schedule_handle((await described(place)).id)
    await handle.pause(note="maintenance till noon")
    slower = place.parts.settings.model_copy(update={"reconcile_interval": timedelta(minutes=7)})
    await declare_schedules(place.parts.client, slower)
    assert (await described(place)).schedule.state.paused
    with pytest.raises(CheckFailed, match="maintenance till noon"):
        await doctor_temporal.schedules(place.parts.settings)
