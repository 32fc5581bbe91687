"""The table of recurring workflows, and the Temporal Schedules that start them.

A schedule belongs to an installation, hence to its task queue. Workers declare the schedules when
they start and every few minutes: one that an operator deleted comes back, one that an operator
paused stays paused, and the doctor reports it.
"""

import asyncio
import logging
from collections.abc import Callable
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
from evergrant_server.core.messages.decisions import ReviewPermits
from evergrant_server.core.messages.maintenance import IntrospectGrants, ReconcileRequest, RereadMetadata
from evergrant_server.core.messages.names import WorkflowName
from evergrant_server.settings import Settings
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.temporal_link.runs import find_in_temporal

log = logging.getLogger("evergrant.schedules")

_CATCHUP_WINDOW = timedelta(minutes=1)  # a run that was missed for longer is left to the next one
_EXECUTION_TIMEOUT = timedelta(hours=1)  # a run that hangs must not prevent the next one for ever
_REDECLARE_INTERVAL = timedelta(minutes=5)


@dataclass(frozen=True)
class ScheduleDefinition:
    """A row of the table: the workflow, its input and its interval."""

    name: str
    workflow: str
    input: Message
    interval: Callable[[Settings], timedelta]
    note: str


SCHEDULES = (
    ScheduleDefinition(
        name="reconcile",
        workflow=WorkflowName.RECONCILE,
        input=ReconcileRequest(),
        interval=lambda settings: settings.reconcile_interval,
        note="starts missing workflows of live connections, and exports histories",
    ),
    ScheduleDefinition(
        name="reread-metadata",
        workflow=WorkflowName.REREAD_METADATA,
        input=RereadMetadata(),
        interval=lambda settings: settings.metadata_interval,
        note="compares discovered metadata with what issuers publish now",
    ),
    ScheduleDefinition(
        name="introspection",
        workflow=WorkflowName.INTROSPECTION,
        input=IntrospectGrants(),
        # a run takes the connections whose turn it is: each comes once in an interval
        interval=lambda settings: max(settings.introspection_interval / 24, timedelta(minutes=1)),
        note="introspects grants (RFC 7662) at providers that offer it",
    ),
    ScheduleDefinition(
        name="review-permits",
        workflow=WorkflowName.REVIEW_PERMITS,
        input=ReviewPermits(),
        interval=lambda _: timedelta(days=1),
        note="proposes permits for removal that no lease has used for long",
    ),
)


@dataclass(frozen=True)
class ScheduleStatus:
    """A schedule as Temporal has it."""

    definition: ScheduleDefinition
    exists: bool
    paused: bool = False
    note: str = ""


def schedule_id(settings: Settings, definition: ScheduleDefinition) -> str:
    """For example `evergrant:reconcile`. Installations with different task queues share no schedule."""
    return f"{settings.temporal_task_queue}:{definition.name}"


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
    for definition in SCHEDULES:
        wanted = _schedule(settings, definition)
        try:
            # where it is new, Temporal's database may have been lost with every connection's workflow
            at_once = definition.workflow == WorkflowName.RECONCILE
            await client.create_schedule(
                schedule_id(settings, definition), wanted, trigger_immediately=at_once
            )
        except ScheduleAlreadyRunningError:
            await _update_if_different(client, schedule_id(settings, definition), wanted)


async def schedule_statuses(client: Client, settings: Settings) -> list[ScheduleStatus]:
    """The state of each schedule. Raises Failure TEMPORAL_UNAVAILABLE."""
    return [await _status_of(client, settings, definition) for definition in SCHEDULES]


async def _status_of(client: Client, settings: Settings, definition: ScheduleDefinition) -> ScheduleStatus:
    handle = client.get_schedule_handle(schedule_id(settings, definition))
    found = await find_in_temporal(handle.describe())
    if found is None:
        return ScheduleStatus(definition, exists=False)
    state = found.schedule.state
    return ScheduleStatus(definition, exists=True, paused=state.paused, note=state.note or "")


def _schedule(settings: Settings, definition: ScheduleDefinition) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            definition.workflow,
            definition.input,
            id=schedule_id(settings, definition),  # Temporal appends the time
            task_queue=settings.temporal_task_queue,
            execution_timeout=_EXECUTION_TIMEOUT,
            static_summary=definition.note,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=definition.interval(settings))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCHUP_WINDOW),
        state=ScheduleState(note=definition.note),
    )


async def _update_if_different(client: Client, name: str, wanted: Schedule) -> None:
    async def update(current: ScheduleUpdateInput) -> ScheduleUpdate | None:
        found = current.description.schedule
        if await _comparable(client, found) == await _comparable(client, wanted):
            return None
        wanted.state = found.state
        return ScheduleUpdate(wanted)

    try:
        await client.get_schedule_handle(name).update(update)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:  # deleted just now: the next round creates it again
            raise


async def _comparable(client: Client, schedule: Schedule) -> list[Any]:
    """What we define of a schedule, with arguments as the bytes that are sent."""
    action = schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    payloads = await client.data_converter.encode(
        [argument for argument in action.args if isinstance(argument, Message)]
    )
    arguments = [payload.data for payload in (payloads or action.args)]
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
