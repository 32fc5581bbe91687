"""A request for access: reminders and a deadline until an admin decides, then the end of temporary access."""

from contextlib import suppress

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import access as m
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows.activity_calls import advance_access_request, provenance


@workflow.defn(name=WorkflowName.ACCESS_REQUEST)
class AccessRequestWorkflow:
    """Owns the waiting; the request, its decision and the permit are in the store."""

    @workflow.init
    def __init__(self, request: m.AdvanceAccessRequest) -> None:
        self._context = request.context
        self._changed = False

    @workflow.run
    async def run(self, request: m.AdvanceAccessRequest) -> m.AccessRequestProgress:
        while True:
            self._changed = False
            call = m.AccessRequestCall(
                tenant=request.tenant,
                request_id=request.request_id,
                context=self._context,
                provenance=provenance(),
            )
            progress = await advance_access_request(call)
            if progress.next_s is None and not self._changed:
                return progress
            workflow.set_current_details(f"it is {progress.state}")
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._changed,
                    timeout=progress.next_s,
                    timeout_summary="the next reminder, the deadline, or the end of the access",
                )

    @workflow.signal(name=SignalName.ADVANCE_ACCESS_REQUEST)
    def advance(self, signal: m.AdvanceAccessRequest) -> None:
        self._changed, self._context = True, signal.context
