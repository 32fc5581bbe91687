"""Carries an incident out: what was ordered, connection by connection, paused and resumed by a person.

Owns the waiting. Which connections, and what is done with each, is decided by the activity from the row of
the incident. The workflow of each connection revokes or refreshes, and that of a rotation replaces keys.
"""

from contextlib import suppress

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.connections.incidents import IncidentState
    from evergrant_server.core.messages import incidents as m
    from evergrant_server.core.messages.jobs import ADVANCE_INCIDENT
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import runs


@workflow.defn(name=WorkflowName.INCIDENT)
class IncidentWorkflow:
    @runs.init
    def __init__(self, start: m.AdvanceIncident) -> None:
        self._changed = False

    @workflow.run
    async def run(self, start: m.AdvanceIncident) -> m.IncidentProgress:
        while True:
            self._changed = False
            request = m.IncidentCall(**dict(start), provenance=runs.provenance())
            progress = await runs.call(ADVANCE_INCIDENT, request)
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

    @workflow.signal(name=SignalName.ADVANCE_INCIDENT)
    def advance(self, signal: m.AdvanceIncident) -> None:
        """The incident's row was changed: it is paused, or goes on."""
        self._changed = True
