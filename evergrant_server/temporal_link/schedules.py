"""What happens again and again: one table, and the Temporal Schedules that carry it out.

A schedule belongs to an installation, hence to its task queue. Workers declare them when
they start and look after them while they run: a schedule that somebody deleted comes back,
one that somebody paused stays paused, and the doctor says so.
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

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import Message
from evergrant_server.core.messages.maintenance import (
    INTROSPECTION_WORKFLOW,
    RECONCILE_WORKFLOW,
    REREAD_METADATA_WORKFLOW,
    IntrospectGrants,
    ReconcileRequest,
    RereadMetadata,
)
from evergrant_server.settings import Settings
from evergrant_server.telemetry.logs import log_event
from evergrant_server.telemetry.names import LogEvent

log = logging.getLogger("evergrant.schedules")

_CATCHUP_WINDOW = timedelta(
    minutes=1
)  # a pass that was missed for longer isn't made up for: the next one does it
_EXECUTION_TIMEOUT = timedelta(hours=1)  # a pass that hangs doesn't stand in the way of the next one for ever
_REDECLARE_INTERVAL = timedelta(minutes=5)


@dataclass(frozen=True)
class ScheduleDefinition:
    """A row of the table: which workflow is started how often, and with what."""

    name: str
    workflow: str
    input: Message
    interval: Callable[[Settings], timedelta]
    note: str


SCHEDULES = (
    ScheduleDefinition(
        name="reconcile",
        workflow=RECONCILE_WORKFLOW,
        input=ReconcileRequest(),
        interval=lambda settings: settings.reconcile_interval,
        note="gives every live connection its workflow again, and exports histories",
    ),
    ScheduleDefinition(
        name="reread-metadata",
        workflow=REREAD_METADATA_WORKFLOW,
        input=RereadMetadata(),
        interval=lambda settings: settings.metadata_interval,
        note="compares what was discovered with what issuers publish now",
    ),
    ScheduleDefinition(
        name="look-elsewhere",
        workflow=INTROSPECTION_WORKFLOW,
        input=IntrospectGrants(),
        # each connection is asked about once in an interval; a pass takes those whose turn it is
        interval=lambda settings: max(settings.introspection_interval / 24, timedelta(minutes=1)),
        note="asks providers that introspect whether grants still live",
    ),
)


@dataclass(frozen=True)
class ScheduleStatus:
    """What Temporal has of a routine."""

    definition: ScheduleDefinition
    exists: bool
    paused: bool = False
    note: str = ""


def schedule_id(settings: Settings, routine: ScheduleDefinition) -> str:
    """`evergrant:reconcile`: installations with a task queue each don't share schedules."""
    return f"{settings.temporal_task_queue}:{routine.name}"


async def keep_schedules(
    client: Client, settings: Settings, routines: tuple[ScheduleDefinition, ...] = SCHEDULES
) -> None:
    """Declare every routine now, and again for as long as the task lives. Trouble is logged."""
    while True:
        try:
            await declare_schedules(client, settings, routines)
        except (RPCError, RuntimeError) as error:
            log_event(
                log,
                logging.WARNING,
                LogEvent.SCHEDULE_MISSING,
                _error_name(error),
                code=ErrorCode.TEMPORAL_UNAVAILABLE,
            )
        await asyncio.sleep(min(_REDECLARE_INTERVAL, settings.reconcile_interval).total_seconds())


async def declare_schedules(
    client: Client, settings: Settings, routines: tuple[ScheduleDefinition, ...] = SCHEDULES
) -> None:
    """Create the schedules that are missing and change those that differ; nothing the second time.

    Whether one is paused is the operator's to say and stays as it is. Raises RPCError.
    """
    for routine in routines:
        wanted = _schedule(settings, routine)
        try:
            await client.create_schedule(schedule_id(settings, routine), wanted)
        except ScheduleAlreadyRunningError:
            await _update_if_different(client, schedule_id(settings, routine), wanted)


async def schedule_statuses(client: Client, settings: Settings) -> list[ScheduleStatus]:
    """What Temporal has of each routine. Raises Failure TEMPORAL_UNAVAILABLE."""
    try:
        return [await _status_of(client, settings, routine) for routine in SCHEDULES]
    except (RPCError, RuntimeError) as error:
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"Temporal can't say: {_error_name(error)}") from None


async def _status_of(client: Client, settings: Settings, routine: ScheduleDefinition) -> ScheduleStatus:
    try:
        found = await client.get_schedule_handle(schedule_id(settings, routine)).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return ScheduleStatus(routine, exists=False)
        raise
    state = found.schedule.state
    return ScheduleStatus(routine, exists=True, paused=state.paused, note=state.note or "")


def _schedule(settings: Settings, routine: ScheduleDefinition) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            routine.workflow,
            routine.input,
            id=schedule_id(settings, routine),  # Temporal puts the time behind it
            task_queue=settings.temporal_task_queue,
            execution_timeout=_EXECUTION_TIMEOUT,
            static_summary=routine.note,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=routine.interval(settings))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCHUP_WINDOW),
        state=ScheduleState(note=routine.note),
    )


async def _update_if_different(client: Client, name: str, wanted: Schedule) -> None:
    async def update(it: ScheduleUpdateInput) -> ScheduleUpdate | None:
        found = it.description.schedule
        if await _comparable(client, found) == await _comparable(client, wanted):
            return None
        wanted.state = found.state
        return ScheduleUpdate(wanted)

    try:
        await client.get_schedule_handle(name).update(update)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:  # deleted just now: the next look makes it again
            raise


async def _comparable(client: Client, schedule: Schedule) -> list[Any]:
    """What of a schedule is ours to say; arguments as the bytes they are sent as."""
    action = schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    payloads = await client.data_converter.encode([it for it in action.args if isinstance(it, Message)])
    sent = [it.data for it in (payloads or action.args)]
    rhythm = [(it.every, it.offset) for it in schedule.spec.intervals]
    plain = not (schedule.spec.calendars or schedule.spec.cron_expressions or schedule.spec.skip)
    return [
        action.workflow,
        action.task_queue,
        action.execution_timeout,
        sent,
        rhythm,
        plain,
        schedule.policy.overlap,
        schedule.policy.catchup_window,
    ]


def _error_name(error: Exception) -> str:
    return error.status.name if isinstance(error, RPCError) else type(error).__name__
