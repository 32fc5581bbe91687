"""Carries out an incident or a bulk order, connection by connection, paused and resumed by a person.

Owns the waiting. Which connections, and what is done with each, is decided by the activity from the row of
the order. The workflow of each connection revokes or refreshes, and that of a rotation replaces keys.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.connections.incidents import IncidentState
    from evergrant_server.core.messages import incidents as m
    from evergrant_server.core.messages.base import RequestMessage
    from evergrant_server.core.messages.jobs import ADVANCE_BULK, ADVANCE_INCIDENT
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from evergrant_server.core.messages.work import Activity
    from workflows import runs

CallT = TypeVar("CallT", bound=RequestMessage)


class _OrderRun:
    """What both workflows have in common."""

    _changed = False

    async def _carry_out(
        self,
        start: RequestMessage,
        activity: Activity[CallT, m.IncidentProgress],
        next_call: Callable[[], CallT],
    ) -> m.IncidentProgress:
        while True:
            self._changed = False
            progress = await runs.call(activity, next_call())
            step = "paused" if progress.paused else progress.state
            details = f"{step}: {progress.ended} of {progress.selected} connections ended"
            workflow.set_current_details(details)
            if progress.state is IncidentState.DONE:
                return progress
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(start)
            if progress.next_s != 0:
                with suppress(TimeoutError):
                    await workflow.wait_condition(
                        lambda: self._changed, timeout=progress.next_s, timeout_summary="the next look"
                    )


@workflow.defn(name=WorkflowName.INCIDENT)
class IncidentWorkflow(_OrderRun):
    @runs.init
    def __init__(self, start: m.AdvanceIncident) -> None:
        self._changed = False

    @workflow.run
    async def run(self, start: m.AdvanceIncident) -> m.IncidentProgress:
        def next_call() -> m.IncidentCall:
            return m.IncidentCall(**dict(start), provenance=runs.provenance())

        return await self._carry_out(start, ADVANCE_INCIDENT, next_call)

    @workflow.signal(name=SignalName.ADVANCE_INCIDENT)
    def advance(self, signal: m.AdvanceIncident) -> None:
        """The incident's row was changed: it is paused, or goes on."""
        self._changed = True


@workflow.defn(name=WorkflowName.BULK)
class BulkWorkflow(_OrderRun):
    @runs.init
    def __init__(self, start: m.AdvanceBulk) -> None:
        self._changed = False

    @workflow.run
    async def run(self, start: m.AdvanceBulk) -> m.IncidentProgress:
        def next_call() -> m.BulkCall:
            return m.BulkCall(**dict(start), provenance=runs.provenance())

        return await self._carry_out(start, ADVANCE_BULK, next_call)

    @workflow.signal(name=SignalName.ADVANCE_BULK)
    def advance(self, signal: m.AdvanceBulk) -> None:
        """The order's row was changed: it is paused, or goes on."""
        self._changed = True
