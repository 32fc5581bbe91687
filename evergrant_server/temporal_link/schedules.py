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

from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import Message
from evergrant_server.core.upkeep import (
    LOOK_ELSEWHERE_WORKFLOW,
    RECONCILE_WORKFLOW,
    REREAD_WORKFLOW,
    LookElsewhere,
    ReconcileOrder,
    RereadMetadata,
)
from evergrant_server.settings import Settings
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event

log = logging.getLogger("evergrant.schedules")

_CAUGHT_UP = timedelta(minutes=1)  # a pass that was missed for longer isn't made up for: the next one does it
_LONGEST_RUN = timedelta(hours=1)  # a pass that hangs doesn't stand in the way of the next one for ever
_LOOK_AGAIN = timedelta(minutes=5)


@dataclass(frozen=True)
class Routine:
    """A row of the table: which workflow is started how often, and with what."""

    name: str
    workflow: str
    order: Message
    every: Callable[[Settings], timedelta]
    note: str


ROUTINES = (
    Routine(
        name="reconcile",
        workflow=RECONCILE_WORKFLOW,
        order=ReconcileOrder(),
        every=lambda settings: settings.reconcile_interval,
        note="gives every live connection its workflow again, and exports histories",
    ),
    Routine(
        name="reread-metadata",
        workflow=REREAD_WORKFLOW,
        order=RereadMetadata(),
        every=lambda settings: settings.metadata_interval,
        note="compares what was discovered with what issuers publish now",
    ),
    Routine(
        name="look-elsewhere",
        workflow=LOOK_ELSEWHERE_WORKFLOW,
        order=LookElsewhere(),
        # each connection is asked about once in an interval; a pass takes those whose turn it is
        every=lambda settings: max(settings.introspection_interval / 24, timedelta(minutes=1)),
        note="asks providers that introspect whether grants still live",
    ),
)


@dataclass(frozen=True)
class Standing:
    """What Temporal has of a routine."""

    routine: Routine
    there: bool
    paused: bool = False
    note: str = ""


def schedule_id(settings: Settings, routine: Routine) -> str:
    """`evergrant:reconcile`: installations with a task queue each don't share schedules."""
    return f"{settings.temporal_task_queue}:{routine.name}"


async def keep_schedules(
    client: Client, settings: Settings, routines: tuple[Routine, ...] = ROUTINES
) -> None:
    """Declare every routine now, and again for as long as the task lives. Trouble is logged."""
    while True:
        try:
            await declare(client, settings, routines)
        except (RPCError, RuntimeError) as error:
            say(log, logging.WARNING, Event.SCHEDULE_MISSING, _named(error), code=Code.TEMPORAL_UNAVAILABLE)
        await asyncio.sleep(min(_LOOK_AGAIN, settings.reconcile_interval).total_seconds())


async def declare(client: Client, settings: Settings, routines: tuple[Routine, ...] = ROUTINES) -> None:
    """Create the schedules that are missing and change those that differ; nothing the second time.

    Whether one is paused is the operator's to say and stays as it is. Raises RPCError.
    """
    for routine in routines:
        wanted = _wanted(settings, routine)
        try:
            await client.create_schedule(schedule_id(settings, routine), wanted)
        except ScheduleAlreadyRunningError:
            await _changed(client, schedule_id(settings, routine), wanted)


async def standing(client: Client, settings: Settings) -> list[Standing]:
    """What Temporal has of each routine. Raises Failure TEMPORAL_UNAVAILABLE."""
    try:
        return [await _standing(client, settings, routine) for routine in ROUTINES]
    except (RPCError, RuntimeError) as error:
        raise Failure(Code.TEMPORAL_UNAVAILABLE, f"Temporal can't say: {_named(error)}") from None


async def _standing(client: Client, settings: Settings, routine: Routine) -> Standing:
    try:
        found = await client.get_schedule_handle(schedule_id(settings, routine)).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return Standing(routine, there=False)
        raise
    state = found.schedule.state
    return Standing(routine, there=True, paused=state.paused, note=state.note or "")


def _wanted(settings: Settings, routine: Routine) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            routine.workflow,
            routine.order,
            id=schedule_id(settings, routine),  # Temporal puts the time behind it
            task_queue=settings.temporal_task_queue,
            execution_timeout=_LONGEST_RUN,
            static_summary=routine.note,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=routine.every(settings))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CAUGHT_UP),
        state=ScheduleState(note=routine.note),
    )


async def _changed(client: Client, name: str, wanted: Schedule) -> None:
    async def update(it: ScheduleUpdateInput) -> ScheduleUpdate | None:
        found = it.description.schedule
        if await _facts(client, found) == await _facts(client, wanted):
            return None
        wanted.state = found.state
        return ScheduleUpdate(wanted)

    try:
        await client.get_schedule_handle(name).update(update)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:  # deleted just now: the next look makes it again
            raise


async def _facts(client: Client, schedule: Schedule) -> list[Any]:
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


def _named(error: Exception) -> str:
    return error.status.name if isinstance(error, RPCError) else type(error).__name__
