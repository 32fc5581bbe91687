"""The Temporal Schedules that start the jobs that recur (`core.messages.jobs`).

A schedule belongs to an installation, hence to its task queue. Workers declare the schedules when
they start and every few minutes: one that an operator deleted comes back, one that an operator
paused stays paused, and the doctor reports it.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import Message
from evergrant_server.core.messages.jobs import JOBS
from evergrant_server.core.messages.work import Job, Recurrence
from evergrant_server.settings import Settings
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.temporal_link.runs import find_in_temporal

log = logging.getLogger("evergrant.schedules")

_CATCHUP_WINDOW = timedelta(minutes=1)  # a run that was missed for longer is left to the next one
_EXECUTION_TIMEOUT = timedelta(hours=1)  # a run that hangs must not prevent the next one for ever
_REDECLARE_INTERVAL = timedelta(minutes=5)


@dataclass(frozen=True)
class ScheduleStatus:
    """The schedule of a job as Temporal has it."""

    job: Job[Any, Any]
    exists: bool
    paused: bool = False
    note: str = ""


def recurring_jobs() -> list[tuple[Job[Any, Any], Recurrence]]:
    return [(job, job.recurrence) for job in JOBS.values() if job.recurrence is not None]


def schedule_id(settings: Settings, job: Job[Any, Any]) -> str:
    """For example `evergrant:reconcile`. Installations with different task queues share no schedule."""
    return f"{settings.temporal_task_queue}:{job.name}"


async def keep_schedules(client: Client, settings: Settings) -> None:
    """Declare the schedules now and every few minutes, until cancelled. Logs what fails."""
    while True:
        try:
            await declare_schedules(client, settings)
        except (RPCError, RuntimeError) as error:
            name = error.status.name if isinstance(error, RPCError) else type(error).__name__
            code = ErrorCode.TEMPORAL_UNAVAILABLE
            log_event(log, logging.WARNING, LogEvent.SCHEDULE_MISSING, name, code=code)
        await asyncio.sleep(min(_REDECLARE_INTERVAL, settings.reconcile_interval).total_seconds())


async def declare_schedules(client: Client, settings: Settings) -> None:
    """Create schedules that are missing and update those that differ. Does nothing the second time.

    A paused schedule stays paused. Raises RPCError.
    """
    for job, recurrence in recurring_jobs():
        schedule = _schedule(settings, job, recurrence)
        name = schedule_id(settings, job)
        try:
            await client.create_schedule(name, schedule, trigger_immediately=recurrence.at_once)
        except ScheduleAlreadyRunningError:
            await _update_if_different(client, name, schedule)


async def schedule_statuses(client: Client, settings: Settings) -> list[ScheduleStatus]:
    """The state of each schedule. Raises Failure TEMPORAL_UNAVAILABLE."""
    return [await _status_of(client, settings, job) for job, _ in recurring_jobs()]


async def _status_of(client: Client, settings: Settings, job: Job[Any, Any]) -> ScheduleStatus:
    handle = client.get_schedule_handle(schedule_id(settings, job))
    description = await find_in_temporal(handle.describe())
    if description is None:
        return ScheduleStatus(job, exists=False)
    state = description.schedule.state
    return ScheduleStatus(job, exists=True, paused=state.paused, note=state.note or "")


def _schedule(settings: Settings, job: Job[Any, Any], recurrence: Recurrence) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            job.name,
            recurrence.request,
            id=schedule_id(settings, job),  # Temporal appends the time
            task_queue=settings.temporal_task_queue,
            execution_timeout=_EXECUTION_TIMEOUT,
            static_summary=job.title,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=recurrence.interval(settings))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCHUP_WINDOW),
        state=ScheduleState(note=job.title),
    )


async def _update_if_different(client: Client, name: str, schedule: Schedule) -> None:
    async def update(current: ScheduleUpdateInput) -> ScheduleUpdate | None:
        declared = current.description.schedule
        if await _comparable(client, declared) == await _comparable(client, schedule):
            return None
        schedule.state = declared.state
        return ScheduleUpdate(schedule)

    try:
        await client.get_schedule_handle(name).update(update)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:  # deleted just now: the next round creates it again
            raise


async def _comparable(client: Client, schedule: Schedule) -> list[Any]:
    """What we define of a schedule, with arguments as their bytes before any codec: one may seal them anew
    each time."""
    action, converter = schedule.action, client.data_converter
    assert isinstance(action, ScheduleActionStartWorkflow)
    messages = [argument for argument in action.args if isinstance(argument, Message)]
    payloads = converter.payload_converter.to_payloads(messages) if messages else action.args
    if not messages and converter.payload_codec is not None:
        payloads = await converter.payload_codec.decode(action.args)
    arguments = [payload.data for payload in payloads]
    intervals = [(interval.every, interval.offset) for interval in schedule.spec.intervals]
    only_intervals = not (schedule.spec.calendars or schedule.spec.cron_expressions or schedule.spec.skip)
    return [
        action.workflow,
        action.task_queue,
        action.execution_timeout,
        arguments,
        intervals,
        only_intervals,
        schedule.policy.overlap,
        schedule.policy.catchup_window,
    ]
